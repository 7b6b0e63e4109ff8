"""Run PTX, which the compiler makes for a GPU, on the CPU: all lanes of a program side by side.

It covers what the kernels of decoding use; an instruction that it does not know is an error.
Programs run one after another, the lanes of one in step, so a branch must go one way for all
of them. Memory is checked instead of trusted (memory.py).
"""
