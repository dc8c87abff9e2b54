// The backward pass: gradients of the drive, the state and every vector of weights. The operands of
// the matrices' gradients are written to memory; Python multiplies them.

#pragma once

#include "recurrence.h"

namespace ys::three_tier {

template <class Op>
void Worker<Op>::backward() {
  int64_t window = run.update_steps_before(p.length - 1);
  for (int64_t t = p.length - 1; t >= 0; t--) {
    const bool updated = run.any_update(t);
    if (updated) update_backward(t);
    if (t + 1 < p.length) {
      multiply_state();
      if (p.gate_bias) gate_of_own_columns_backward(t + 1);
    } else {
      for (int64_t row = rows.begin; row < rows.end; row++)
        std::copy_n(own_columns(static_cast<const Real*>(p.main), row), columns.size(),
                    pre_row(row));
    }
    norm_backward(t, updated);
    if (run.splits) group.wait();  // all of d_pre is written
    for (int64_t row = rows.begin; row < rows.end; row++)
      if (starts_at(t, row)) reset_summaries_backward(row);
    if (t == 0 || run.any_update(t - 1)) begin_window_backward(window--);
  }
  multiply_state();
  if (p.gate_bias) gate_of_own_columns_backward(0);
  for (int64_t row = rows.begin; row < rows.end; row++)
    std::copy_n(pre_row(row), columns.size(), own_columns(static_cast<Real*>(p.main), row));
}

// No gradient crosses the start of a document: neither the window's nor the summaries'.
template <class Op>
void Worker<Op>::reset_summaries_backward(int64_t row) {
  Real* d_drive_bias = run.gain_sums(row_group, DRIVE_BIAS);
  for (int64_t c = columns.begin; c < columns.end; c++) {
    d_drive_bias[c] += run.d_sum[row * S + c];
    run.d_sum[row * S + c] = 0;
    for (const Summary& summary : p.summaries) static_cast<Real*>(summary.value)[row * S + c] = 0;
  }
}

template <class Op>
void Worker<Op>::norm_backward(int64_t t, bool updated) {
  Real *d_gain = run.gain_sums(row_group, GAIN), *d_bias = run.gain_sums(row_group, BIAS);
  const Real* gain = static_cast<const Real*>(p.gain);
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (const Segment& s : segments) {
      const int64_t at = (t * B + row) * S + s.begin;
      Real s1 = 0, s2 = 0;
      gain_backward(
          pre_row(row) + s.begin - columns.begin, static_cast<const Op*>(p.d_h) + at,
          updated ? run.y_sums.data() + row * S + s.begin : static_cast<const Real*>(nullptr),
          static_cast<const Op*>(p.x_hat) + at, t ? B * S : 0, gain + s.begin, d_gain + s.begin,
          d_bias + s.begin, s.size(), &s1, &s2);
      if (run.splits) publish(row, s1, s2);
      else finish_step_backward(t, row, s, s1, s2);
    }
  if (!run.splits) return;
  group.wait();
  for (int64_t row = rows.begin; row < rows.end; row++) {
    Real s1, s2;
    merge_sums(row, &s1, &s2);
    for (const Segment& s : segments) finish_step_backward(t, row, s, s1, s2);
  }
}

template <class Op>
void Worker<Op>::finish_step_backward(int64_t t, int64_t row, const Segment& s, Real s1, Real s2) {
  const int64_t at = (t * B + row) * S + s.begin;
  const Real rstd = static_cast<const Real*>(p.rstd)[(t * B + row) * p.n_heads + s.head];
  norm_input_backward(pre_row(row) + s.begin - columns.begin, static_cast<const Op*>(p.x_hat) + at,
                      rstd, s1 / Real(P), s2 / Real(P), s.size(),
                      static_cast<Op*>(p.d_drive) + drive_at(t, row) + s.begin,
                      run.operand + row * run.stride + s.begin,
                      run.d_sum.data() + row * S + s.begin);
  if (starts_at(t, row)) std::fill_n(run.operand + row * run.stride + s.begin, s.size(), Op(0));
}

// From the gradient of what step t multiplied, that of its gate's input and of h before it. What it
// multiplied is written, too: 0 where a document starts.
template <class Op>
void Worker<Op>::gate_of_own_columns_backward(int64_t t) {
  Real* d_gate_bias = run.gain_sums(row_group, GATE_BIAS) + columns.begin;
  for (int64_t row = rows.begin; row < rows.end; row++) {
    const int64_t at = (t * B + row) * S + columns.begin;
    Op* kept = static_cast<Op*>(p.kept) + at;
    state_gate_backward(pre_row(row), static_cast<const Op*>(p.h) + at - B * S,
                        gate_at(t, row, columns.begin), columns.size(), kept,
                        static_cast<Op*>(p.d_drive) + drive_at(t, row) + S + columns.begin,
                        d_gate_bias);
    if (starts_at(t, row)) std::fill_n(kept, columns.size(), Op(0));
  }
}

// Adds the gradients of a window's steps to those of L and G, once its first step is done.
template <class Op>
void Worker<Op>::begin_window_backward(int64_t window) {
  const Real* summary_scale = static_cast<const Real*>(p.summary_scale);
  const Real* sums = static_cast<const Real*>(p.summary_sum) + window * B * S;
  Real* d_summary_scale = run.gain_sums(row_group, SUMMARY_SCALE);
  Real* d_drive_bias = run.gain_sums(row_group, DRIVE_BIAS);
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (int64_t c = columns.begin; c < columns.end; c++) {
      const int64_t i = row * S + c;
      const Real d = run.d_sum[i];
      run.d_sum[i] = 0;
      d_drive_bias[c] += d;
      if (summary_scale) d_summary_scale[c] += d * sums[i];
      for (const Summary& summary : p.summaries)
        static_cast<Real*>(summary.value)[i] += summary_scale ? summary_scale[c] * d : d;
    }
}

// Backward through the summaries updated after step t; y_sums gets their gradient of h.
template <class Op>
void Worker<Op>::update_backward(int64_t t) {
  for (int i : {0, 1})
    if (run.is_update(i, t))
      round_own_columns(static_cast<const Real*>(p.summaries[i].value), d_value(i, t));
  group.wait();
  for (int i : {0, 1})
    if (run.is_update(i, t))
      multiply_share(d_value(i, t), S, p.summaries[i].shaper, p.summaries[i].width,
                     run.summary_pre[i].data(), false);
  group.wait();
  for (int i : {0, 1})
    if (run.is_update(i, t)) summary_norm_backward(i, t);
  group.wait();
  bool first = true;
  for (int i : {0, 1}) {
    if (!run.is_update(i, t)) continue;
    multiply_share(d_summary_pre(i, t), p.summaries[i].width, p.summaries[i].controller, S,
                   static_cast<Real*>(p.summaries[i].value), false);
    multiply_share(d_summary_pre(i, t), p.summaries[i].width, p.summaries[i].influencer, S,
                   run.y_sums.data(), !first);
    first = false;
  }
  if (p.shaper) {
    Op* d_y = static_cast<Op*>(p.d_y) + run.update_steps_before(t) * B * S;
    round_share(run.y_sums.data(), d_y, S);
    group.wait();
    multiply_share(d_y, S, p.shaper, S, run.y_sums.data(), false);
  }
  group.wait();
}

template <class Op>
Op* Worker<Op>::d_value(int i, int64_t t) {
  return static_cast<Op*>(p.summaries[i].d_value) + run.updates_before(i, t) * B * S;
}
template <class Op>
Op* Worker<Op>::d_summary_pre(int i, int64_t t) {
  return static_cast<Op*>(p.summaries[i].d_pre) +
         run.updates_before(i, t) * B * p.summaries[i].width;
}

template <class Op>
void Worker<Op>::summary_norm_backward(int i, int64_t t) {
  const Summary& summary = p.summaries[i];
  const int64_t R = summary.width, each = R / p.n_heads, update = run.updates_before(i, t);
  Real *d_gain = run.summary_gains[i].data() + thread * 2 * R, *d_bias = d_gain + R;
  const Range part = summary_rows();
  for (int64_t row = part.begin; row < part.end; row++)
    for (int64_t head = 0; head < p.n_heads; head++) {
      const int64_t c = head * each, at = row * R + c, saved = update * B * R + at;
      const Real* x_hat = static_cast<const Real*>(summary.x_hat) + saved;
      Real s1 = 0, s2 = 0, *grad = run.summary_pre[i].data() + at;
      gain_backward(grad, static_cast<const Real*>(nullptr), static_cast<const Real*>(nullptr),
                    x_hat, 0, static_cast<const Real*>(summary.gain) + c, d_gain + c, d_bias + c,
                    each, &s1, &s2);
      const Real rstd =
          static_cast<const Real*>(summary.rstd)[(update * B + row) * p.n_heads + head];
      norm_input_backward(grad, x_hat, rstd, s1 / Real(each), s2 / Real(each), each,
                          static_cast<Op*>(summary.d_pre) + saved, static_cast<Op*>(nullptr),
                          static_cast<Real*>(nullptr));
    }
}

}  // namespace ys::three_tier
