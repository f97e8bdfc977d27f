"""The one place that names the version; setup.py and CMakeLists.txt read it from here."""

__version__ = "0.1.0"
