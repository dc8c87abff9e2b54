// The forward pass: a thread's work at each step, and at the update of a summary.

#pragma once

#include "recurrence.h"

namespace ys::three_tier {

template <class Op>
void Worker<Op>::forward() {
  begin_window(0);
  load_first_operand();
  if (run.splits) group.wait();
  int64_t window = 0;
  for (int64_t t = 0; t < p.length; t++) {
    reset_summaries(t);
    multiply_state();
    if (run.splits) norm_of_shared_columns(t);
    else norm_of_own_columns(t);
    if (run.splits) group.wait();  // all of h is written
    if (run.any_update(t)) {
      update(t);
      if (t + 1 < p.length) begin_window(++window);
    }
  }
}

// What is added to the drive of the next steps, in this thread's columns.
template <class Op>
void Worker<Op>::begin_window(int64_t window) {
  const Real *local = static_cast<const Real*>(p.summaries[0].value),
             *global = static_cast<const Real*>(p.summaries[1].value);
  const Real *summary_scale = static_cast<const Real*>(p.summary_scale),
             *bias = static_cast<const Real*>(p.drive_bias);
  Real* sums = p.saves ? static_cast<Real*>(p.summary_sum) + window * B * S : nullptr;
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (int64_t c = columns.begin; c < columns.end; c++) {
      const int64_t i = row * S + c;
      const Real summary_sum = local[i] + global[i];
      if (sums) sums[i] = summary_sum;
      run.addend[i] = (summary_scale ? summary_scale[c] : 1) * summary_sum + (bias ? bias[c] : 0);
    }
}

// L and G are 0 for a document that starts at t.
template <class Op>
void Worker<Op>::reset_summaries(int64_t t) {
  for (int64_t row = rows.begin; p.starts && row < rows.end; row++) {
    if (!starts_at(t, row)) continue;
    for (const Summary& summary : p.summaries)
      std::fill_n(own_columns(static_cast<Real*>(summary.value), row), columns.size(), Real(0));
    if (p.drive_bias)
      std::copy_n(static_cast<const Real*>(p.drive_bias) + columns.begin, columns.size(),
                  own_columns(run.addend.data(), row));
    else std::fill_n(own_columns(run.addend.data(), row), columns.size(), Real(0));
  }
}

template <class Op>
RealOf<Op> Worker<Op>::sum_pre(int64_t t, int64_t row, const Segment& s) {
  const Op* drive = static_cast<const Op*>(p.drive) + drive_at(t, row) + s.begin;
  const Op* next = t + 1 < p.length ? drive + B * run.drive_stride() : drive;
  if (p.gate_bias) fetch(next + S, s.size());
  return add_drive(pre_row(row) + s.begin - columns.begin, drive, next,
                   run.addend.data() + row * S + s.begin, s.size());
}

template <class Op>
void Worker<Op>::finish_step(int64_t t, int64_t row, const Segment& s, Real mean, Real squares) {
  const Real rstd = 1 / std::sqrt(squares / Real(P) + EPS<Real>);
  const int64_t at = (t * B + row) * S + s.begin;
  if (p.saves && s.begin == s.head * P)
    static_cast<Real*>(p.rstd)[(t * B + row) * p.n_heads + s.head] = rstd;
  normalise(pre_row(row) + s.begin - columns.begin, mean, rstd,
            static_cast<const Real*>(p.gain) + s.begin, static_cast<const Real*>(p.bias) + s.begin,
            s.size(), p.saves ? static_cast<Op*>(p.x_hat) + at : static_cast<Op*>(nullptr),
            static_cast<Op*>(p.h) + at, run.operand + row * run.stride + s.begin,
            t + 1 < p.length ? gate_at(t + 1, row, s.begin) : StateGate<Real, Op>(),
            t + 1 == p.length ? static_cast<Real*>(p.main) + row * S + s.begin : nullptr);
  if (t + 1 < p.length && starts_at(t + 1, row))
    std::fill_n(run.operand + row * run.stride + s.begin, s.size(), Op(0));
}

template <class Op>
void Worker<Op>::norm_of_own_columns(int64_t t) {
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (const Segment& s : segments) {
      const Real mean = sum_pre(t, row, s) / Real(P);
      finish_step(t, row, s, mean,
                  squared_distances(pre_row(row) + s.begin - columns.begin, mean, s.size()));
    }
}

template <class Op>
void Worker<Op>::norm_of_shared_columns(int64_t t) {
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (const Segment& s : segments) {
      const Real mean = sum_pre(t, row, s) / Real(s.size());
      publish(row, mean, squared_distances(pre_row(row), mean, s.size()));
    }
  group.wait();
  for (int64_t row = rows.begin; row < rows.end; row++) {
    Real mean, squares;
    merge_moments(row, &mean, &squares);
    for (const Segment& s : segments) finish_step(t, row, s, mean, squares);
  }
}

// Updates the summaries whose interval ends with step t.
template <class Op>
void Worker<Op>::update(int64_t t) {
  const Op* y = static_cast<const Op*>(p.h) + t * B * S;
  for (int i : {0, 1})
    if (run.is_update(i, t))
      round_own_columns(static_cast<const Real*>(p.summaries[i].value), old_value(i, t));
  group.wait();
  if (p.shaper) {
    Op* shaped =
        p.saves ? static_cast<Op*>(p.y) + run.update_steps_before(t) * B * S : run.y_op.data();
    multiply_share(y, S, p.shaper, S, run.y_sums.data(), false);
    round_share(run.y_sums.data(), shaped, S);
    y = shaped;
    group.wait();
  }
  for (int i : {0, 1}) {
    if (!run.is_update(i, t)) continue;
    multiply_share(old_value(i, t), S, p.summaries[i].controller, p.summaries[i].width,
                   run.summary_pre[i].data(), false);
    multiply_share(y, S, p.summaries[i].influencer, p.summaries[i].width, run.summary_pre[i].data(),
                   true);
  }
  group.wait();
  for (int i : {0, 1})
    if (run.is_update(i, t)) summary_norm(i, t);
  group.wait();
  for (int i : {0, 1})
    if (run.is_update(i, t))
      multiply_share(normed(i, t), p.summaries[i].width, p.summaries[i].shaper, S,
                     static_cast<Real*>(p.summaries[i].value), false);
  group.wait();
}

template <class Op>
Op* Worker<Op>::old_value(int i, int64_t t) {
  return static_cast<Op*>(p.summaries[i].old_value) + run.saved(run.updates_before(i, t)) * B * S;
}
template <class Op>
Op* Worker<Op>::normed(int i, int64_t t) {
  return static_cast<Op*>(p.summaries[i].normed) +
         run.saved(run.updates_before(i, t)) * B * p.summaries[i].width;
}
template <class Op>
void Worker<Op>::round_share(const Real* from, Op* to, int64_t n) {
  const Range part = share(n, NR<Op>, p.column_groups, column_group);
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (int64_t c = part.begin; c < part.end; c++) store_one(to + row * n + c, from[row * n + c]);
}
// This thread's rows of a summary's LayerNorm, which is small and therefore divided by rows.
template <class Op>
Range Worker<Op>::summary_rows() const {
  Range part = share(rows.size(), 1, p.column_groups, column_group);
  return {rows.begin + part.begin, rows.begin + part.end};
}

template <class Op>
void Worker<Op>::summary_norm(int i, int64_t t) {
  const Summary& summary = p.summaries[i];
  const int64_t R = summary.width, each = R / p.n_heads,
                update = run.saved(run.updates_before(i, t));
  const Real *gain = static_cast<const Real*>(summary.gain),
             *bias = static_cast<const Real*>(summary.bias);
  const Range part = summary_rows();
  for (int64_t row = part.begin; row < part.end; row++)
    for (int64_t head = 0; head < p.n_heads; head++) {
      const int64_t at = row * R + head * each, saved = update * B * R + at;
      Real* values = run.summary_pre[i].data() + at;
      Real mean = 0;
      for (int64_t c = 0; c < each; c++) mean += values[c];
      mean /= Real(each);
      const Real rstd =
          layer_norm(values, mean, gain + head * each, bias + head * each, each, EPS<Real>,
                     p.saves ? static_cast<Real*>(summary.x_hat) + saved : nullptr,
                     static_cast<Op*>(summary.normed) + saved);
      if (p.saves) static_cast<Real*>(summary.rstd)[(update * B + row) * p.n_heads + head] = rstd;
    }
}

}  // namespace ys::three_tier
