"""Prepares Jittor 1.3.11 for CUDA 12 and 13 with cuDNN 8 and 9, without touching the installed Jittor.

``toolkit`` finds the parts, ``home`` lays them out as Jittor expects them, ``choice`` decides whether to use them, and
``include`` holds the headers that give back what CUDA 13 and cuDNN 9 took away. Nothing here was ever run on a GPU.
"""
