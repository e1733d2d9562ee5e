"""What a GPU spends its time on: each file a reference, a Triton kernel, and a function that picks one of them."""
