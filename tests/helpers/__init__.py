"""What the tests share: inputs, the golden vectors, the algorithm as plain loops, and the judge of float results."""
