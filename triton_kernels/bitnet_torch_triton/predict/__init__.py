"""What the kernels should take on GPUs that are not here: a model of time, never a measurement.

A kernel takes the gap between two nodes of a CUDA graph, some memory latencies that follow one
another, and the longest of its bytes, its instructions and its matrix products at their rates::

    t = gap + depth * latency + max(bytes, instructions, integer operations, matrix products)

=============  =========================================================================
``gpu.py``     rates out of data sheets, and the few that are assumed
``launch.py``  that formula
``ops.py``     the work of our kernels, instructions counted in their machine code
``step.py``    the launches of one token of a decoder, and their sum
``peer.py``    the same for bitnet.cpp's CUDA program, beside what it has published
=============  =========================================================================

The model has to explain ``peer.py`` before it is believed about us: a test holds every published
row within a quarter. ``python -m bitnet_torch_triton.predict`` prints everything.
"""
