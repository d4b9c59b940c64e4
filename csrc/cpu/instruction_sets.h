// One binary for every x86-64: a marked function is compiled for three instruction sets, and the loader picks the
// machine's. Elsewhere, and under sanitizers (whose run time is not up when the loader picks), it is compiled once.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(BISSL_FAST_NO_CLONES)
#define PER_INSTRUCTION_SET __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PER_INSTRUCTION_SET
#endif

// For the templates that a marked function calls: they must be compiled inside it, once per instruction set.
#define INLINE [[gnu::always_inline]] inline
#define INLINE_LAMBDA __attribute__((always_inline))
