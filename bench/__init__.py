"""Microbenchmarks of ``torch.ops.fastvid``: time, memory and the memory floor of every op, on a GPU or a CPU.

    python -m bench                     all cases; writes results/DEVICE.json, .md and _kernels.json, and the pictures
    python -m bench --quick             only the rows that have a target, without the reference; prints, writes nothing
    python -m bench --ops prune plan    only these ops; prints, writes nothing
    python -m bench draw results.json   the pictures again, from what a run wrote (needs matplotlib, no torch, no GPU)
    pytest bench --benchmark-compare    the ops under pytest-benchmark, against the last saved run (--benchmark-save)

``--out FILE.json`` says where results go, and writes them for --quick and --ops too. FASTVID_GIT names the commit
where the tree carries no .git.

How each field of a row is measured; all times are medians in microseconds:

gpu_us                 one call among many in a replayed CUDA graph. Each call has its own inputs and its own outputs:
                       together the inputs exceed four times the L2, or the L2 is flushed before each replay, so that
                       every input comes out of device memory.
gpu_us_warm            the same with one set of inputs for all calls, which stays in the L2 where it fits.
spread_us              distance of the 10th from the 90th percentile of gpu_us over the replays.
floor_us               bytes of inputs and outputs over the bandwidth of a large device-to-device copy (read and write
                       counted), measured in the same run.
eager_spread_us        the same of eager_us over the calls.
eager_us               wall time of one call from Python with a synchronize behind it; ``fastvid_ext.prune`` for prune.
reference_us           wall time of ``fastvid_ext.reference`` on the same device and inputs, synchronized.
compiled_reference_us  the same under torch.compile with graph breaks allowed; null where it was not tried or failed.
peak_extra_bytes       device memory at its highest during a call, less inputs and outputs.

Clocks are left as they are. On a CPU only the wall times are there, on smaller shapes. Inputs: see :mod:`bench.inputs`.
"""
