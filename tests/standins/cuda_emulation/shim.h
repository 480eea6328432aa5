// What the kernels need of CUDA, in C++: the grid is a loop, the threads of a block take turns, phase by phase.
//
// Shared memory is a local variable that the compiler fills with garbage. The order in which threads take turns can be chosen:
// an outcome that depends on it would be a race. With THREADED, threads are real and meet at a barrier, and blocks run one
// after the other, so that ThreadSanitizer can look for the races that taking turns cannot show.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef THREADED
#include <pthread.h>
#endif

#define COUPLED_SAMPLING_EMULATION
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#ifdef THREADED
#define __shared__ static
#else
#define __shared__
#endif

struct Index {
    unsigned int x = 0, y = 0, z = 0;
};
inline Index blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

inline unsigned int __float_as_uint(float value) {
    unsigned int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float __uint_as_float(unsigned int bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

template <class Value>
Value atomicAdd(Value* address, Value value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

template <class Value>
Value atomicMax(Value* address, Value value) {
    Value before = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value > before && !__atomic_compare_exchange_n(address, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return before;
}

template <class Value>
Value atomicMin(Value* address, Value value) {
    Value before = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value < before && !__atomic_compare_exchange_n(address, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return before;
}

inline int turn_order = 0;  // 0 from first to last, 1 from last to first, 2 mixed

#ifdef THREADED
inline pthread_barrier_t barrier;
inline thread_local int own_thread = 0;

template <class Phase>
void each(Phase phase) {
    phase(own_thread);
    pthread_barrier_wait(&barrier);
}
#else
template <class Phase>
void each(Phase phase);
#endif
