"""Every kernel, compiled ahead of time for GPUs that need not be here, and what came out.

``python -m bitnet_torch_triton.aot`` compiles each kernel at its shipped configurations and
reads the machine code with the tools that Triton brings along: registers, stack, shared
memory, the widths of loads, matrix instructions, and instructions per weight in the main loop.
"""
