// The recurrence back: gradients of the drive, of the state and of all that is no matrix. What the
// gradients of the matrices are products of is left in memory.

#pragma once

#include "recurrence.h"

namespace ys {

template <class Op>
void Worker<Op>::backward() {
  int64_t window = run.firings(p.length - 1);
  for (int64_t t = p.length - 1; t >= 0; t--) {
    const bool fired = run.any_fires(t);
    if (fired) update_backward(t);
    if (t + 1 < p.length) {
      step_product();
    } else {
      for (int64_t row = rows.begin; row < rows.end; row++)
        std::copy_n(own(static_cast<const Real*>(p.main), row), columns.size(), pre_row(row));
    }
    norm_backward(t, fired);
    if (run.splits) group.wait();  // d_pre is whole
    for (int64_t row = rows.begin; row < rows.end; row++)
      if (starts_at(t, row)) forget_held_backward(row);
    if (t == 0 || run.any_fires(t - 1)) begin_window_backward(window--);
  }
  step_product();
  for (int64_t row = rows.begin; row < rows.end; row++)
    std::copy_n(pre_row(row), columns.size(), own(static_cast<Real*>(p.main), row));
}

// Nothing of the row's window and of its summaries passes back over the start of a document.
template <class Op>
void Worker<Op>::forget_held_backward(int64_t row) {
  Real* d_drive_bias = run.gains.data() + (row_group * GAINS + 3) * S;
  for (int64_t c = columns.begin; c < columns.end; c++) {
    d_drive_bias[c] += run.d_sum[row * S + c];
    run.d_sum[row * S + c] = 0;
    for (const Tier& tier : p.tiers) static_cast<Real*>(tier.held)[row * S + c] = 0;
  }
}

template <class Op>
void Worker<Op>::norm_backward(int64_t t, bool fired) {
  Real *d_gain = run.gains.data() + row_group * GAINS * S, *d_bias = d_gain + S;
  const Real* gain = static_cast<const Real*>(p.gain);
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (const Segment& s : segments) {
      const int64_t at = (t * B + row) * S + s.begin;
      Real s1 = 0, s2 = 0;
      through_gain(pre_row(row) + s.begin - columns.begin, static_cast<const Op*>(p.d_h) + at,
                   fired ? run.fire.data() + row * S + s.begin : static_cast<const Real*>(nullptr),
                   static_cast<const Op*>(p.x_hat) + at, t ? B * S : 0, gain + s.begin,
                   d_gain + s.begin, d_bias + s.begin, s.size(), &s1, &s2);
      if (run.splits) publish(row, s1, s2);
      else write_step_backward(t, row, s, s1, s2);
    }
  if (!run.splits) return;
  group.wait();
  for (int64_t row = rows.begin; row < rows.end; row++) {
    Real s1, s2;
    merge_sums(row, &s1, &s2);
    for (const Segment& s : segments) write_step_backward(t, row, s, s1, s2);
  }
}

template <class Op>
void Worker<Op>::write_step_backward(int64_t t, int64_t row, const Segment& s, Real s1, Real s2) {
  const int64_t at = (t * B + row) * S + s.begin;
  const Real rstd = static_cast<const Real*>(p.rstd)[(t * B + row) * p.heads + s.head];
  through_norm(pre_row(row) + s.begin - columns.begin, static_cast<const Op*>(p.x_hat) + at, rstd,
               s1 / Real(P), s2 / Real(P), s.size(), static_cast<Op*>(p.d_pre) + at,
               run.operand + row * run.step + s.begin, run.d_sum.data() + row * S + s.begin);
  if (starts_at(t, row)) std::fill_n(run.operand + row * run.step + s.begin, s.size(), Op(0));
}

// The first step of a window is behind: what its steps gave goes to L and G.
template <class Op>
void Worker<Op>::begin_window_backward(int64_t window) {
  const Real* entry = static_cast<const Real*>(p.entry);
  const Real* sums = static_cast<const Real*>(p.held_sum) + window * B * S;
  Real *d_entry = run.gains.data() + (row_group * GAINS + 2) * S, *d_drive_bias = d_entry + S;
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (int64_t c = columns.begin; c < columns.end; c++) {
      const int64_t i = row * S + c;
      const Real d = run.d_sum[i];
      run.d_sum[i] = 0;
      d_drive_bias[c] += d;
      if (entry) d_entry[c] += d * sums[i];
      for (const Tier& tier : p.tiers) static_cast<Real*>(tier.held)[i] += entry ? entry[c] * d : d;
    }
}

// Back through the summaries that fired after step t; `fire` gets what they give to h.
template <class Op>
void Worker<Op>::update_backward(int64_t t) {
  for (int i : {0, 1})
    if (run.fires(i, t)) narrow_own(static_cast<const Real*>(p.tiers[i].held), d_held(i, t));
  group.wait();
  for (int i : {0, 1})
    if (run.fires(i, t))
      shared_product(d_held(i, t), S, p.tiers[i].shaper, p.tiers[i].width, run.pre_tier[i].data(),
                     false);
  group.wait();
  for (int i : {0, 1})
    if (run.fires(i, t)) tier_norm_backward(i, t);
  group.wait();
  bool first = true;
  for (int i : {0, 1}) {
    if (!run.fires(i, t)) continue;
    shared_product(d_pre_tier(i, t), p.tiers[i].width, p.tiers[i].controller, S,
                   static_cast<Real*>(p.tiers[i].held), false);
    shared_product(d_pre_tier(i, t), p.tiers[i].width, p.tiers[i].influencer, S, run.fire.data(),
                   !first);
    first = false;
  }
  if (p.shaper) {
    Op* d_y = static_cast<Op*>(p.d_y) + run.firings(t) * B * S;
    narrow_share(run.fire.data(), d_y, S);
    group.wait();
    shared_product(d_y, S, p.shaper, S, run.fire.data(), false);
  }
  group.wait();
}

template <class Op>
Op* Worker<Op>::d_held(int i, int64_t t) {
  return static_cast<Op*>(p.tiers[i].d_held) + run.updates(i, t) * B * S;
}
template <class Op>
Op* Worker<Op>::d_pre_tier(int i, int64_t t) {
  return static_cast<Op*>(p.tiers[i].d_pre) + run.updates(i, t) * B * p.tiers[i].width;
}

template <class Op>
void Worker<Op>::tier_norm_backward(int i, int64_t t) {
  const Tier& tier = p.tiers[i];
  const int64_t R = tier.width, each = R / p.heads, update = run.updates(i, t);
  Real *d_gain = run.tier_gains[i].data() + thread * 2 * R, *d_bias = d_gain + R;
  const Range part = tier_rows();
  for (int64_t row = part.begin; row < part.end; row++)
    for (int64_t head = 0; head < p.heads; head++) {
      const int64_t c = head * each, at = row * R + c, saved = update * B * R + at;
      const Real* x_hat = static_cast<const Real*>(tier.x_hat) + saved;
      Real s1 = 0, s2 = 0, *grad = run.pre_tier[i].data() + at;
      through_gain(grad, static_cast<const Real*>(nullptr), static_cast<const Real*>(nullptr),
                   x_hat, 0, static_cast<const Real*>(tier.gain) + c, d_gain + c, d_bias + c, each,
                   &s1, &s2);
      const Real rstd = static_cast<const Real*>(tier.rstd)[(update * B + row) * p.heads + head];
      through_norm(grad, x_hat, rstd, s1 / Real(each), s2 / Real(each), each,
                   static_cast<Op*>(tier.d_pre) + saved, static_cast<Op*>(nullptr),
                   static_cast<Real*>(nullptr));
    }
}

}  // namespace ys
