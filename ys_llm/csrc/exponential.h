// e^x, ln x and the sigmoid of vectors.

#pragma once

#include "common.h"

namespace ys {

// max(v, lowest); NaN where v is NaN.
inline Vec<float> at_least(float lowest, Vec<float> v) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps(_mm512_set1_ps(lowest), (__m512)v);
#else
  return v < lowest ? broadcast(lowest) : v;
#endif
}
inline Vec<double> at_least(double lowest, Vec<double> v) {
  return v < lowest ? broadcast(lowest) : v;
}

// e^x for x <= 87. In float: x = n ln 2 + r and a polynomial for e^r (Cephes), relative error 2e-7;
// below -87 the result is that of -87, which is practically 0.
inline Vec<float> exponential(Vec<float> x) {
  const Vec<float> shift =
      broadcast(12582912.f);  // 1.5 * 2^23: the sum's last bits are the integer
  x = at_least(-87.f, x);
  Vec<float> shifted = x * 1.44269504f + shift, n = shifted - shift;
  Vec<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec<float> p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  I32 bits, power;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&power, &shifted, sizeof power);
  bits += power << 23;
  std::memcpy(&r, &bits, sizeof r);
  return x == x ? r : x;
#endif
}

// 2^n of whole numbers -1022 <= n <= 1023 that were added to 1.5 * 2^52: the sum's last bits are n.
inline Vec<double> power_of_two(Vec<double> shifted) {
  I64 bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;
  std::memcpy(&shifted, &bits, sizeof bits);
  return shifted;
}

// In double: x = n ln 2 + r and the Taylor series of e^r, whose rest is below 1e-17; the relative
// error is 3e-16, and numbers too small for a double become 0.
inline Vec<double> exponential(Vec<double> x) {
  constexpr double inverse_factorials[] = {1. / 6227020800,
                                           1. / 479001600,
                                           1. / 39916800,
                                           1. / 3628800,
                                           1. / 362880,
                                           1. / 40320,
                                           1. / 5040,
                                           1. / 720,
                                           1. / 120,
                                           1. / 24,
                                           1. / 6,
                                           1. / 2,
                                           1.,
                                           1.};
  const Vec<double> shift = broadcast(6755399441055744.);  // 1.5 * 2^52
  x = at_least(-746., x);
  const Vec<double> n = (x * 1.4426950408889634 + shift) - shift;
  const Vec<double> r = (x - n * 6.93147180369123816490e-1) - n * 1.90821492927058770002e-10;
  Vec<double> p{};
  for (const double factor : inverse_factorials) p = p * r + factor;
  // In two steps, because 2^n itself may be too small for a double.
  const Vec<double> half = n * .5 + shift, rest = n - (half - shift) + shift;
  return p * power_of_two(half) * power_of_two(rest);
}

// ln x of normal positive numbers; NaN where x is NaN. In float: x = 2^n (1 + f) with
// sqrt(1/2) <= 1 + f < sqrt(2) and a polynomial for ln(1 + f) (Cephes), error 1e-7.
inline Vec<float> logarithm(Vec<float> x) {
  constexpr int32_t root_of_half = 0x3f3504f3;  // its bits
  I32 bits;
  std::memcpy(&bits, &x, sizeof bits);
  const I32 power = (bits - root_of_half) >> 23;
  bits -= power << 23;
  Vec<float> f;
  std::memcpy(&f, &bits, sizeof f);
  f -= 1.f;
  const Vec<float> n = __builtin_convertvector(power, Vec<float>), square = f * f;
  Vec<float> p = broadcast(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * square + n * -2.12194440e-4f - square * .5f;
  p = n * 0.693359375f + (f + p);
  return x == x ? p : x;
}
inline Vec<double> logarithm(Vec<double> x) {
  for (int i = 0; i < Lanes<double>::n; i++) x[i] = std::log(x[i]);
  return x;
}

inline Vec<float> inverse(Vec<float> x) {
#if defined(__AVX512F__)
  Vec<float> guess = (Vec<float>)_mm512_rcp14_ps((__m512)x);  // 14 bits; one Newton step: 23
  return guess * (2.f - x * guess);
#else
  return 1.f / x;
#endif
}
inline Vec<double> inverse(Vec<double> x) { return 1. / x; }

// 1 / (1 + e^-x); its smallest value is e^-80.
template <class R>
inline Vec<R> sigmoid(Vec<R> x) {
  return inverse(R(1) + exponential(-at_least(R(-80), x)));
}

template <class R>
inline Vec<R> hyperbolic_tangent(Vec<R> x) {
  return R(2) * sigmoid<R>(R(2) * x) - R(1);
}

template <class R>
inline R largest(Vec<R> v) {
  R most = v[0];
  for (int i = 1; i < Lanes<R>::n; i++) most = v[i] > most ? v[i] : most;
  return most;
}

}  // namespace ys
