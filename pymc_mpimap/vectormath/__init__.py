"""Elementary functions in plain arithmetic, which a compiler turns into SIMD code."""
