"""The steps of proofs/gpu.py: what they are given (`job`), and what each looks at."""
