"""A step's decisions as CUDA kernels, compiled by NVRTC when they are first used. Importing this package loads no CUDA.

Kernels here are compiled for real devices and executed in an emulation on the CPU; they have never run on a GPU.
"""
