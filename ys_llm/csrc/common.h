// What all kernels share: vectors that any processor has, bfloat16, and threads that wait for each
// other. A vector is 64 bytes wide; the compiler makes of it what the processor offers.

#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ys {

using bf16 = uint16_t;  // the upper half of a float

template <class Real>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(64)));
  static constexpr int n = 16;
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(64)));
  static constexpr int n = 8;
};
template <class Real>
using Vec = typename Lanes<Real>::V;
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));

inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// To nearest, ties to even, as every library rounds; NaN stays NaN.
inline bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// load<Real>(p): one vector of Real from Real or bf16 memory; store: the other way.
template <class Real>
inline Vec<Real> load(const Real* p) {
  Vec<Real> v;
  std::memcpy(&v, p, 64);
  return v;
}
template <class Real>
inline Vec<float> load(const bf16* p) {
  U16 half;
  std::memcpy(&half, p, 32);
  U32 bits = __builtin_convertvector(half, U32) << 16;
  Vec<float> v;
  std::memcpy(&v, &bits, 64);
  return v;
}
template <class Real>
inline void store(Real* p, Vec<Real> v) {
  std::memcpy(p, &v, 64);
}
inline void store(bf16* p, Vec<float> v) {
#if defined(__AVX512BF16__)
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, 32);
#else
  U32 bits;
  std::memcpy(&bits, &v, 64);
  U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  U32 is_nan = (U32)(v != v);
  rounded = (is_nan & 0x7fc0) | (~is_nan & rounded);
  U16 half = __builtin_convertvector(rounded, U16);
  std::memcpy(p, &half, 32);
#endif
}
// Store past the caches what is not read again before they have forgotten it. `p` must be aligned.
template <class T, class Real>
inline void stream(T* p, Vec<Real> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same<T, bf16>::value) {
    alignas(32) bf16 half[16];
    store(half, v);
    _mm256_stream_si256((__m256i*)p, _mm256_load_si256((const __m256i*)half));
  } else {
    _mm512_stream_si512((__m512i*)p, (__m512i)v);
  }
#else
  store(p, v);
#endif
}
template <class T>
inline bool streams_to(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 64 == 0;
}
inline void fence_streams() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

inline float load_one(const float* p) { return *p; }
inline double load_one(const double* p) { return *p; }
inline float load_one(const bf16* p) { return widen(*p); }
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(double* p, double x) { *p = x; }
inline void store_one(bf16* p, float x) { *p = narrow(x); }

template <class Real>
inline Vec<Real> fill(Real x) {
  return Vec<Real>{} + x;
}
// The lanes added up, halves first, so that the order is the same on every processor.
template <class Real>
inline Real sum(Vec<Real> v) {
  alignas(64) Real lanes[Lanes<Real>::n];
  store(lanes, v);
  for (int half = Lanes<Real>::n / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}
#if defined(__AVX512F__)
template <>
inline float sum<float>(Vec<float> v) {
  return _mm512_reduce_add_ps((__m512)v);
}
#endif

// All threads of a group arrive, then all go on. They spin: a window's step takes microseconds.
class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}
  void wait() {
    if (n_ == 1) return;
    int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
      if (spins > 20000) std::this_thread::yield();  // another process has our core
    }
  }

 private:
  const int n_;
  alignas(128) std::atomic<int> arrived_{0};
  alignas(128) std::atomic<int> phase_{0};
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The share of part `i` of `parts` in n things that are dealt out in units.
inline Range share(int64_t n, int64_t unit, int64_t parts, int64_t i) {
  int64_t units = (n + unit - 1) / unit;
  return {std::min(n, units * i / parts * unit), std::min(n, units * (i + 1) / parts * unit)};
}

}  // namespace ys
