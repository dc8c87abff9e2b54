// LayerNorm of a row, or of a part of one, forward and back, with what is read and written beside
// it.

#pragma once

#include "common.h"

namespace ys {

template <class Real>
constexpr Real EPS = Real(1e-5);  // of every LayerNorm

// Ask for what will be read a step later.
template <class T>
inline void fetch(const T* p, int64_t n) {
  for (int64_t byte = 0; byte < n * int64_t(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + byte, 0, 2);
}

// The sums of a row are kept in four parts: an addition waits for the one before it, and a row is
// long enough for the wait to be felt.
constexpr int PARTS = 4;

// pre += drive + addend over n columns; returns the sum. `next` is what the next step reads.
template <class Real, class Op>
Real add_drive(Real* pre, const Op* drive, const Op* next, const Real* addend, int64_t n) {
  constexpr int w = Lanes<Real>::n;
  Vec<Real> totals[PARTS] = {};
  int64_t i = 0;
  const auto add = [&](Vec<Real>& total, int64_t at) {
    Vec<Real> v = load(pre + at) + load<Real>(drive + at) + load(addend + at);
    store(pre + at, v);
    total += v;
  };
  for (; i + PARTS * w <= n; i += PARTS * w) {
    fetch(next + i, PARTS * w);
    for (int part = 0; part < PARTS; part++) add(totals[part], i + part * w);
  }
  for (; i + w <= n; i += w) add(totals[0], i);
  Real total = sum<Real>((totals[0] + totals[1]) + (totals[2] + totals[3]));
  for (; i < n; i++) total += pre[i] += load_one(drive + i) + addend[i];
  return total;
}

template <class Real>
Real squared_distances(const Real* pre, Real mean, int64_t n) {
  constexpr int w = Lanes<Real>::n;
  Vec<Real> totals[PARTS] = {};
  int64_t i = 0;
  const auto add = [&](Vec<Real>& total, int64_t at) {
    Vec<Real> v = load(pre + at) - mean;
    total += v * v;
  };
  for (; i + PARTS * w <= n; i += PARTS * w)
    for (int part = 0; part < PARTS; part++) add(totals[part], i + part * w);
  for (; i + w <= n; i += w) add(totals[0], i);
  Real total = sum<Real>((totals[0] + totals[1]) + (totals[2] + totals[3]));
  for (; i < n; i++) total += (pre[i] - mean) * (pre[i] - mean);
  return total;
}

// x_hat = (pre - mean) rstd and h = x_hat gain + bias, where they are asked for also as operand of
// the next step and as Real state. What only the way back reads goes past the caches.
template <class Real, class Op, class Saved>
void normalise(const Real* pre, Real mean, Real rstd, const Real* gain, const Real* bias, int64_t n,
               Saved* x_hat, Op* h, Op* operand, Real* state) {
  constexpr int w = Lanes<Real>::n;
  const bool streams = operand && streams_to(h) && streams_to(x_hat);
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    Vec<Real> x = (load(pre + i) - mean) * rstd, v = x * load(gain + i) + load(bias + i);
    if (streams) {
      if (x_hat) stream<Saved, Real>(x_hat + i, x);
      stream<Op, Real>(h + i, v);
    } else {
      if (x_hat) store(x_hat + i, x);
      store(h + i, v);
    }
    if (operand) store(operand + i, v);
    if (state) store(state + i, v);
  }
  for (; i < n; i++) {
    Real x = (pre[i] - mean) * rstd, v = x * gain[i] + bias[i];
    if (x_hat) store_one(x_hat + i, x);
    store_one(h + i, v);
    if (operand) store_one(operand + i, v);
    if (state) state[i] = v;
  }
}

// grad <- (grad + d_h + extra) gain, with what gain and bias get of it; adds up s1 = sum of grad
// and s2 = sum of grad x_hat. `d_h` and `extra` may be none.
template <class Real, class Op, class Saved>
void through_gain(Real* grad, const Op* d_h, const Real* extra, const Saved* x_hat, int64_t to_next,
                  const Real* gain, Real* d_gain, Real* d_bias, int64_t n, Real* s1, Real* s2) {
  constexpr int w = Lanes<Real>::n;
  Vec<Real> total1{}, total2{};
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    if (to_next) {
      __builtin_prefetch(d_h + i - to_next, 0, 2);
      __builtin_prefetch(x_hat + i - to_next, 0, 2);
    }
    Vec<Real> g = load(grad + i), x = load<Real>(x_hat + i);
    if (d_h) g += load<Real>(d_h + i);
    if (extra) g += load(extra + i);
    store(d_gain + i, load(d_gain + i) + g * x);
    store(d_bias + i, load(d_bias + i) + g);
    g *= load(gain + i);
    store(grad + i, g);
    total1 += g;
    total2 += g * x;
  }
  Real rest1 = sum<Real>(total1), rest2 = sum<Real>(total2);
  for (; i < n; i++) {
    Real g = grad[i] + (d_h ? load_one(d_h + i) : 0) + (extra ? extra[i] : 0),
         x = load_one(x_hat + i);
    d_gain[i] += g * x;
    d_bias[i] += g;
    grad[i] = g *= gain[i];
    rest1 += g;
    rest2 += g * x;
  }
  *s1 += rest1;
  *s2 += rest2;
}

// d_pre = rstd (grad - mean1 - x_hat mean2), added up over the window in d_sum where there is one.
template <class Real, class Op, class Saved>
void through_norm(const Real* grad, const Saved* x_hat, Real rstd, Real mean1, Real mean2,
                  int64_t n, Op* d_pre, Op* operand, Real* d_sum) {
  constexpr int w = Lanes<Real>::n;
  const bool streams = operand && streams_to(d_pre);
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    Vec<Real> v = (load(grad + i) - mean1 - load<Real>(x_hat + i) * mean2) * rstd;
    if (streams) stream<Op, Real>(d_pre + i, v);
    else store(d_pre + i, v);
    if (operand) store(operand + i, v);
    if (d_sum) store(d_sum + i, load(d_sum + i) + v);
  }
  for (; i < n; i++) {
    Real v = (grad[i] - mean1 - load_one(x_hat + i) * mean2) * rstd;
    store_one(d_pre + i, v);
    if (operand) store_one(operand + i, v);
    if (d_sum) d_sum[i] += v;
  }
}

}  // namespace ys
