"""GGUF, the files of llama.cpp and bitnet.cpp: read and written.

==================  ===============================================================
``types``           the tensor types and the sizes of their blocks
``ternary_blocks``  TQ1_0, TQ2_0, I2_S: codes to bytes and back
``float_blocks``    the float types: weights to bytes and back
``load``            a model and its tokenizer from a file
``export``          a model and its tokenizer to a file
``config``          metadata as a model's configuration, and back
``names``           tensor names, and the order of rows of q and k
``tokenizer``       the tokenizer in the metadata
``file``            an open file: its head checked, its tensors read one by one
``writer``          a file from a plan and its tensors, one after the other
==================  ===============================================================

Our own code reads and writes the container. The ``gguf`` package, which tests compare it with,
does not know I2_S, believes lengths and offsets, and makes two array objects for each token of
a vocabulary.
"""
