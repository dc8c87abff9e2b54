// LayerNorm and RMSNorm of one row: their only implementation in C++. With them what a step of the
// three-tier recurrence does to the row in passing.

#pragma once

#include "exponential.h"

namespace ys {

template <class Real>
constexpr Real EPS = Real(1e-5);  // of every LayerNorm

// Prefetches what the next step reads.
template <class T>
inline void fetch(const T* p, int64_t n) {
  for (int64_t byte = 0; byte < n * int64_t(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + byte, 0, 2);
}

// A sum over a row has four accumulators: with one, each addition would wait for the one before it.
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

template <class Real>
Real row_sum(const Real* x, int64_t n) {
  constexpr int w = Lanes<Real>::n;
  Vec<Real> totals[PARTS] = {};
  int64_t i = 0;
  for (; i + PARTS * w <= n; i += PARTS * w)
    for (int part = 0; part < PARTS; part++) totals[part] += load(x + i + part * w);
  for (; i + w <= n; i += w) totals[0] += load(x + i);
  Real total = sum<Real>((totals[0] + totals[1]) + (totals[2] + totals[3]));
  for (; i < n; i++) total += x[i];
  return total;
}

// The gate of a row of the state, f = tanh(input + bias); without one, `bias` is null.
template <class Real, class Op>
struct StateGate {
  const Op* input = nullptr;
  const Real* bias = nullptr;

  explicit operator bool() const { return bias; }
  Vec<Real> load_at(int64_t i) const {
    return hyperbolic_tangent<Real>(load<Real>(input + i) + load(bias + i));
  }
  Real one_at(int64_t i) const { return std::tanh(load_one(input + i) + bias[i]); }
};

// x_hat = (pre - mean) rstd and h = x_hat gain + bias. `x_hat`, `operand` (h, or h times `gate`)
// and `state` (a copy of h in Real) may be null. With an operand, h and x_hat are read by backward
// only, so they are stored past the caches.
template <class Real, class Op, class Saved>
void normalise(const Real* pre, Real mean, Real rstd, const Real* gain, const Real* bias, int64_t n,
               Saved* x_hat, Op* h, Op* operand, StateGate<Real, Op> gate, Real* state) {
  constexpr int w = Lanes<Real>::n;
  const bool streams = operand && is_aligned(h) && is_aligned(x_hat);
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    Vec<Real> x = (load(pre + i) - mean) * rstd, v = x * load(gain + i) + load(bias + i);
    if (streams) {
      if (x_hat) store_streaming<Saved, Real>(x_hat + i, x);
      store_streaming<Op, Real>(h + i, v);
    } else {
      if (x_hat) store(x_hat + i, x);
      store(h + i, v);
    }
    if (operand) store(operand + i, gate ? v * gate.load_at(i) : v);
    if (state) store(state + i, v);
  }
  for (; i < n; i++) {
    Real x = (pre[i] - mean) * rstd, v = x * gain[i] + bias[i];
    if (x_hat) store_one(x_hat + i, x);
    store_one(h + i, v);
    if (operand) store_one(operand + i, gate ? v * gate.one_at(i) : v);
    if (state) state[i] = v;
  }
}

// y = LN(x) gain + bias with the given mean; returns 1 / the standard deviation. `x_hat` may be
// null.
template <class Real, class Op>
Real layer_norm(const Real* x, Real mean, const Real* gain, const Real* bias, int64_t n, Real eps,
                Real* x_hat, Op* y) {
  const Real rstd = 1 / std::sqrt(squared_distances(x, mean, n) / Real(n) + eps);
  normalise(x, mean, rstd, gain, bias, n, x_hat, y, static_cast<Op*>(nullptr),
            StateGate<Real, Op>(), static_cast<Real*>(nullptr));
  return rstd;
}

// The sum of squares that an RMSNorm takes its scale from.
template <class Real, class T>
Vec<Real> add_squares(Vec<Real> total, const T* x, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<Real>::n) {
    Vec<Real> v = load_part<Real>(x + i, n - i);
    total += v * v;
  }
  return total;
}
template <class Real>
Real rms_scale(Vec<Real> squares, int64_t n, Real eps) {
  return Real(1) / std::sqrt(sum<Real>(squares) / Real(n) + eps);
}
// y = x scale gain.
template <class Real, class T, class Gain, class Y>
void scale_row(const T* x, Real scale, const Gain* gain, int64_t n, Y* y) {
  for (int64_t i = 0; i < n; i += Lanes<Real>::n) {
    Vec<Real> v = load_part<Real>(x + i, n - i) * scale * load_part<Real>(gain + i, n - i);
    store_part<Real>(y + i, v, n - i);
  }
}

// grad <- (grad + d_h + extra) gain; adds to d_gain and d_bias, to s1 the sum of grad and to s2 the
// sum of grad x_hat. `d_h` and `extra` may be null. The next step's inputs are `to_next` numbers
// before these.
template <class Real, class Op, class Saved>
void gain_backward(Real* grad, const Op* d_h, const Real* extra, const Saved* x_hat,
                   int64_t to_next, const Real* gain, Real* d_gain, Real* d_bias, int64_t n,
                   Real* s1, Real* s2) {
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

// From d, the gradient of kept = f h, that of the gate's input, which is added to d_bias, too; and
// in the place of d that of h.
template <class Real, class Op>
void state_gate_backward(Real* d, const Op* h, StateGate<Real, Op> gate, int64_t n, Op* kept,
                         Op* d_input, Real* d_bias) {
  constexpr int w = Lanes<Real>::n;
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    const Vec<Real> f = gate.load_at(i), v = load(d + i), k = f * load<Real>(h + i);
    const Vec<Real> g = v * (load<Real>(h + i) - f * k);
    store(kept + i, k);
    store(d_input + i, g);
    store(d_bias + i, load(d_bias + i) + g);
    store(d + i, Vec<Real>(v * f));
  }
  for (; i < n; i++) {
    const Real f = gate.one_at(i), k = f * load_one(h + i), g = d[i] * (load_one(h + i) - f * k);
    store_one(kept + i, k);
    store_one(d_input + i, g);
    d_bias[i] += g;
    d[i] *= f;
  }
}

// d_pre = rstd (grad - mean1 - x_hat mean2), also added to d_sum (the window's sum) if not null.
template <class Real, class Op, class Saved>
void norm_input_backward(const Real* grad, const Saved* x_hat, Real rstd, Real mean1, Real mean2,
                         int64_t n, Op* d_pre, Op* operand, Real* d_sum) {
  constexpr int w = Lanes<Real>::n;
  const bool streams = operand && is_aligned(d_pre);
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    Vec<Real> v = (load(grad + i) - mean1 - load<Real>(x_hat + i) * mean2) * rstd;
    if (streams) store_streaming<Op, Real>(d_pre + i, v);
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
