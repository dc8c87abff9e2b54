"""C++ sources, and the loader that compiles them once and keeps them."""
