// Shared by all kernels: vectors, bfloat16, barriers and the split of work among threads.
//
// Vec is 64 bytes wide on every processor; the compiler maps it to the available registers.

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
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "exports.h"

namespace ys {

using bf16 = ys_bf16;

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
// The type of sums and statistics of operands in Op.
template <class Op>
using RealOf = std::conditional_t<std::is_same<Op, double>::value, double, float>;
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));

inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline bf16 round_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// load<Real>(p) reads a vector of Real from Real or bf16 memory; store is its inverse.
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
// Non-temporal store, for data that would be evicted from the caches before it is read again. `p`
// must be aligned to a vector.
template <class T, class Real>
inline void store_streaming(T* p, Vec<Real> v) {
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
inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 64 == 0;
}

inline float load_one(const float* p) { return *p; }
inline double load_one(const double* p) { return *p; }
inline float load_one(const bf16* p) { return widen(*p); }
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(double* p, double x) { *p = x; }
inline void store_one(bf16* p, float x) { *p = round_to_bf16(x); }

// The next vector of a row with `left` numbers left, padded with zeros.
template <class Real, class T>
inline Vec<Real> load_part(const T* p, int64_t left) {
  if (left >= Lanes<Real>::n) return load<Real>(p);
  Vec<Real> v{};
  for (int64_t i = 0; i < left; i++) v[i] = load_one(p + i);
  return v;
}
template <class Real, class T>
inline void store_part(T* p, Vec<Real> v, int64_t left) {
  if (left >= Lanes<Real>::n) return store(p, v);
  for (int64_t i = 0; i < left; i++) store_one(p + i, v[i]);
}

template <class Real>
inline Vec<Real> broadcast(Real x) {
  return Vec<Real>{} + x;
}
// The sum of the lanes, halves first, so that the order is the same on every processor.
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

// All threads of a group arrive before any continues. They spin: a step takes microseconds.
class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}
  void wait() {
    if (n_ <= 1) return;
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

// Part `i` of `parts` of the range 0..n, cut at multiples of `unit`.
inline Range share(int64_t n, int64_t unit, int64_t parts, int64_t i) {
  int64_t units = (n + unit - 1) / unit;
  return {std::min(n, units * i / parts * unit), std::min(n, units * (i + 1) / parts * unit)};
}

}  // namespace ys
