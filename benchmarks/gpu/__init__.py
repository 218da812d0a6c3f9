"""Speed of the GPU kernels, beside ceilings and peers measured in the same run."""
