// Empty: stands in for PyTorch's header where there is no CUDA to build with (see sitecustomize.py).
