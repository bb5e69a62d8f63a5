"""Copy-paste in the transforms of other libraries, and YOLO's labels: one small module for each.

`torchvision`, `albumentations` and `huggingface` need the library that they are called after, and
nothing else of this project needs them. docs/frameworks.md has a program for each.
"""
