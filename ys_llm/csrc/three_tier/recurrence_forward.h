// The recurrence forward: what each thread does at each step, and where a summary is renewed.

#pragma once

#include "recurrence.h"

namespace ys {

template <class Op>
void Worker<Op>::forward() {
  begin_window(0);
  begin();
  if (run.splits) group.wait();
  int64_t window = 0;
  for (int64_t t = 0; t < p.length; t++) {
    forget_held(t);
    step_product();
    if (run.splits) split_norm(t);
    else whole_norm(t);
    if (run.splits) group.wait();  // h is whole
    if (run.any_fires(t)) {
      update(t);
      if (t + 1 < p.length) begin_window(++window);
    }
  }
}

// What is added to the drive of the steps to come, in the own columns.
template <class Op>
void Worker<Op>::begin_window(int64_t window) {
  const Real *local = static_cast<const Real*>(p.tiers[0].held),
             *global = static_cast<const Real*>(p.tiers[1].held);
  const Real *entry = static_cast<const Real*>(p.entry),
             *bias = static_cast<const Real*>(p.drive_bias);
  Real* sums = p.keeps ? static_cast<Real*>(p.held_sum) + window * B * S : nullptr;
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (int64_t c = columns.begin; c < columns.end; c++) {
      const int64_t i = row * S + c;
      const Real held = local[i] + global[i];
      if (sums) sums[i] = held;
      run.addend[i] = (entry ? entry[c] * held : held) + (bias ? bias[c] : 0);
    }
}

// A document that starts at t knows of no summary.
template <class Op>
void Worker<Op>::forget_held(int64_t t) {
  for (int64_t row = rows.begin; p.starts && row < rows.end; row++) {
    if (!starts_at(t, row)) continue;
    for (const Tier& tier : p.tiers)
      std::fill_n(own(static_cast<Real*>(tier.held), row), columns.size(), Real(0));
    if (p.drive_bias)
      std::copy_n(static_cast<const Real*>(p.drive_bias) + columns.begin, columns.size(),
                  own(run.addend.data(), row));
    else std::fill_n(own(run.addend.data(), row), columns.size(), Real(0));
  }
}

template <class Op>
RealOf<Op> Worker<Op>::add_up(int64_t t, int64_t row, const Segment& s) {
  const Op* drive = static_cast<const Op*>(p.drive) + (t * B + row) * S + s.begin;
  const Op* next = t + 1 < p.length ? drive + B * S : drive;
  return add_drive(pre_row(row) + s.begin - columns.begin, drive, next,
                   run.addend.data() + row * S + s.begin, s.size());
}

template <class Op>
void Worker<Op>::write_step(int64_t t, int64_t row, const Segment& s, Real mean, Real squares) {
  const Real rstd = 1 / std::sqrt(squares / Real(P) + EPS<Real>);
  const int64_t at = (t * B + row) * S + s.begin;
  if (p.keeps && s.begin == s.head * P)
    static_cast<Real*>(p.rstd)[(t * B + row) * p.heads + s.head] = rstd;
  normalise(pre_row(row) + s.begin - columns.begin, mean, rstd,
            static_cast<const Real*>(p.gain) + s.begin, static_cast<const Real*>(p.bias) + s.begin,
            s.size(), p.keeps ? static_cast<Op*>(p.x_hat) + at : static_cast<Op*>(nullptr),
            static_cast<Op*>(p.h) + at, run.operand + row * run.step + s.begin,
            t + 1 == p.length ? static_cast<Real*>(p.main) + row * S + s.begin : nullptr);
  if (t + 1 < p.length && starts_at(t + 1, row))
    std::fill_n(run.operand + row * run.step + s.begin, s.size(), Op(0));
}

template <class Op>
void Worker<Op>::whole_norm(int64_t t) {
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (const Segment& s : segments) {
      const Real mean = add_up(t, row, s) / Real(P);
      write_step(t, row, s, mean,
                 squared_distances(pre_row(row) + s.begin - columns.begin, mean, s.size()));
    }
}

template <class Op>
void Worker<Op>::split_norm(int64_t t) {
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (const Segment& s : segments) {
      const Real mean = add_up(t, row, s) / Real(s.size());
      publish(row, mean, squared_distances(pre_row(row), mean, s.size()));
    }
  group.wait();
  for (int64_t row = rows.begin; row < rows.end; row++) {
    Real mean, squares;
    merge_moments(row, &mean, &squares);
    for (const Segment& s : segments) write_step(t, row, s, mean, squares);
  }
}

// The summaries that fire after step t.
template <class Op>
void Worker<Op>::update(int64_t t) {
  const Op* y = static_cast<const Op*>(p.h) + t * B * S;
  for (int i : {0, 1})
    if (run.fires(i, t)) narrow_own(static_cast<const Real*>(p.tiers[i].held), old_held(i, t));
  group.wait();
  if (p.shaper) {
    Op* shaped = p.keeps ? static_cast<Op*>(p.y) + run.firings(t) * B * S : run.y_op.data();
    shared_product(y, S, p.shaper, S, run.fire.data(), false);
    narrow_share(run.fire.data(), shaped, S);
    y = shaped;
    group.wait();
  }
  for (int i : {0, 1}) {
    if (!run.fires(i, t)) continue;
    shared_product(old_held(i, t), S, p.tiers[i].controller, p.tiers[i].width,
                   run.pre_tier[i].data(), false);
    shared_product(y, S, p.tiers[i].influencer, p.tiers[i].width, run.pre_tier[i].data(), true);
  }
  group.wait();
  for (int i : {0, 1})
    if (run.fires(i, t)) tier_norm(i, t);
  group.wait();
  for (int i : {0, 1})
    if (run.fires(i, t))
      shared_product(normed(i, t), p.tiers[i].width, p.tiers[i].shaper, S,
                     static_cast<Real*>(p.tiers[i].held), false);
  group.wait();
}

template <class Op>
Op* Worker<Op>::old_held(int i, int64_t t) {
  return static_cast<Op*>(p.tiers[i].old_held) + run.kept(run.updates(i, t)) * B * S;
}
template <class Op>
Op* Worker<Op>::normed(int i, int64_t t) {
  return static_cast<Op*>(p.tiers[i].normed) + run.kept(run.updates(i, t)) * B * p.tiers[i].width;
}
template <class Op>
void Worker<Op>::narrow_share(const Real* from, Op* to, int64_t n) {
  const Range part = share(n, NR<Op>, p.column_groups, column_group);
  for (int64_t row = rows.begin; row < rows.end; row++)
    for (int64_t c = part.begin; c < part.end; c++) store_one(to + row * n + c, from[row * n + c]);
}
// Of a summary's LayerNorm, whose rows are dealt out: they are few, and narrow.
template <class Op>
Range Worker<Op>::tier_rows() const {
  Range part = share(rows.size(), 1, p.column_groups, column_group);
  return {rows.begin + part.begin, rows.begin + part.end};
}

template <class Op>
void Worker<Op>::tier_norm(int i, int64_t t) {
  const Tier& tier = p.tiers[i];
  const int64_t R = tier.width, each = R / p.heads, update = run.kept(run.updates(i, t));
  const Real *gain = static_cast<const Real*>(tier.gain),
             *bias = static_cast<const Real*>(tier.bias);
  const Range part = tier_rows();
  for (int64_t row = part.begin; row < part.end; row++)
    for (int64_t head = 0; head < p.heads; head++) {
      const int64_t at = row * R + head * each, saved = update * B * R + at;
      Real* values = run.pre_tier[i].data() + at;
      Real mean = 0;
      for (int64_t c = 0; c < each; c++) mean += values[c];
      mean /= Real(each);
      const Real rstd =
          1 / std::sqrt(squared_distances(values, mean, each) / Real(each) + EPS<Real>);
      if (p.keeps) static_cast<Real*>(tier.rstd)[(update * B + row) * p.heads + head] = rstd;
      normalise(values, mean, rstd, gain + head * each, bias + head * each, each,
                p.keeps ? static_cast<Real*>(tier.x_hat) + saved : static_cast<Real*>(nullptr),
                static_cast<Op*>(tier.normed) + saved, static_cast<Op*>(nullptr),
                static_cast<Real*>(nullptr));
    }
}

}  // namespace ys
