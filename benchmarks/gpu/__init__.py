"""What the GPU kernels reach, against ceilings and peers measured in the same run."""
