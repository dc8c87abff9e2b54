// Shared by all kernels: vectors, bfloat16, barriers and the split of work among threads.
//
// Vec is as wide as one register of the processor. A wider vector would be kept in memory: gcc
// splits it into registers only in simple code.

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
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "exports.h"

namespace ys {

using bf16 = ys_bf16;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 16, REGISTERS = 16;
#endif

template <class Real>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int n = VECTOR_BYTES / 4;
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int n = VECTOR_BYTES / 8;
};
template <class Real>
using Vec = typename Lanes<Real>::V;
// The type of sums and statistics of operands in Op.
template <class Op>
using RealOf = std::conditional_t<std::is_same<Op, double>::value, double, float>;
typedef uint32_t U32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t U16 __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef int32_t I32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t I64 __attribute__((vector_size(VECTOR_BYTES)));
typedef int8_t I8 __attribute__((vector_size(VECTOR_BYTES / 4)));

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

// Vectors of 16- and 8-bit numbers as wide as V<float>. gcc converts them one by one where it is
// not told the instruction.
inline U32 widen_u16(const void* p) {
#if defined(__AVX512F__)
  return (U32)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (U32)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  uint16x4_t half;
  std::memcpy(&half, p, sizeof half);
  return (U32)vmovl_u16(half);
#else
  U16 half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, U32);
#endif
}
inline Vec<float> widen_i8(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec<float>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Vec<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#elif defined(__aarch64__)
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return (Vec<float>)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
#else
  I8 bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, I32), Vec<float>);
#endif
}

// load<Real>(p) reads a vector of Real from Real, bf16 or int8 memory; store is its inverse.
template <class Real>
inline Vec<Real> load(const Real* p) {
  Vec<Real> v;
  std::memcpy(&v, p, VECTOR_BYTES);
  return v;
}
template <class Real>
inline Vec<float> load(const bf16* p) {
  const U32 bits = widen_u16(p) << 16;
  Vec<float> v;
  std::memcpy(&v, &bits, VECTOR_BYTES);
  return v;
}
template <class Real>
inline Vec<float> load(const int8_t* p) {
  return widen_i8(p);
}
template <class Real>
inline void store(Real* p, Vec<Real> v) {
  std::memcpy(p, &v, VECTOR_BYTES);
}
inline void store(bf16* p, Vec<float> v) {
#if defined(__AVX512BF16__)
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, 32);
#else
  U32 bits;
  std::memcpy(&bits, &v, VECTOR_BYTES);
  U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  U32 is_nan = (U32)(v != v);
  rounded = (is_nan & 0x7fc0) | (~is_nan & rounded);
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i pairs = _mm256_packus_epi32((__m256i)rounded, (__m256i)rounded);
  const __m128i half = _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0b1000));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half);
#else
  U16 half = __builtin_convertvector(rounded, U16);
  std::memcpy(p, &half, sizeof half);
#endif
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
#elif defined(__AVX2__)
  if constexpr (std::is_same<T, bf16>::value) store(p, v);
  else _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
  store(p, v);
#endif
}
template <class T>
inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % VECTOR_BYTES == 0;
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
  return x - Vec<Real>{};  // x + 0 would be an addition: -0 + 0 is not -0
}
// The sum of the lanes: the upper half is added to the lower one until one number is left.
template <int bytes, class Real, class V>
inline Real fold(V v) {
  if constexpr (bytes == sizeof(Real)) {
    return v[0];
  } else if constexpr (bytes == 2 * sizeof(Real)) {
    return v[0] + v[1];
  } else {
    typedef Real Half __attribute__((vector_size(bytes / 2)));
    Half low, high;
    std::memcpy(&low, &v, bytes / 2);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + bytes / 2, bytes / 2);
    return fold<bytes / 2, Real>(Half(low + high));
  }
}
template <class Real>
inline Real sum(Vec<Real> v) {
  return fold<VECTOR_BYTES, Real>(v);
}

// A few cycles for the other hyper-thread of the core, while this one waits in a loop.
inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // `yield` does nothing on most cores
#endif
}

// All threads of a group arrive before any continues. They spin, since a step takes microseconds,
// and give their core away when the others take longer: these may be waiting for it.
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
      if (spins < SPINS) pause();
      else std::this_thread::yield();
    }
  }

 private:
  static constexpr int SPINS = 2000;
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
