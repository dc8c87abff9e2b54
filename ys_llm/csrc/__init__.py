"""C++ sources, and the loader that compiles and caches them."""
