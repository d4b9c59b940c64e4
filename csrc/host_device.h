// Marks what runs on a GPU and on the host alike.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

// For what loops call on every number: on the host it is compiled inside them, once per instruction set.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define HOST_DEVICE_INLINE [[gnu::always_inline]] inline
#else
#define HOST_DEVICE_INLINE HOST_DEVICE inline
#endif

// For loops over memory on a GPU: several rounds' loads at once.
#ifdef __CUDA_ARCH__
#define UNROLLED _Pragma("unroll 4")
#else
#define UNROLLED
#endif

// For short loops over arrays that are to live in registers.
#ifdef __CUDA_ARCH__
#define IN_REGISTERS _Pragma("unroll")
#else
#define IN_REGISTERS
#endif
