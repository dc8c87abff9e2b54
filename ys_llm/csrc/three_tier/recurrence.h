// The three-tier recurrence over a sequence, forward and backward. The equation is that of
// ys_llm/ops/three_tier/reference.py, against which this is tested.
//
// Arrays are row-major, time first. Op is the type of matmul operands (double, float or bf16), Real
// that of sums, statistics and state (double or float). Threads form a grid of rows of the batch x
// columns of the state. Row groups are independent. Threads that share rows wait for each other
// twice a step: for the LayerNorm statistics, and for all of h. With heads, columns are divided by
// heads, which are independent too, except where a summary is updated.

#pragma once

#include "../gemm.h"
#include "../norm.h"

namespace ys::three_tier {

using Pass = ys_three_tier_pass;
using Summary = ys_three_tier_summary;

// Vectors of weights, whose gradients are sums.
enum Gain : int64_t { GAIN, BIAS, SUMMARY_SCALE, DRIVE_BIAS, GATE_BIAS, GAINS };

// The columns of one head, or some of them.
struct Segment {
  int64_t head, begin, end;
  int64_t size() const { return end - begin; }
};

template <class Op>
struct Run {
  using Real = RealOf<Op>;
  const Pass& p;
  const int64_t T = p.length, B = p.batch, S = p.d_state, P = S / p.n_heads;
  const bool splits;  // whether several threads share the columns of one LayerNorm
  std::vector<Real> addend, parts, summary_pre[2], y_sums, d_sum, gains, summary_gains[2];
  std::vector<Op> y_op, operand_memory;
  // B x stride: h as the next step multiplies it, times that step's gate, 0 where a document
  // starts.
  Op* operand;
  // Rows are a cache line further apart than their length, or all would map to the same cache sets.
  const int64_t stride = S + int64_t(64 / sizeof(Op));

  Run(const Pass& pass) : p(pass), splits(p.n_heads == 1 && p.column_groups > 1) {
    const int64_t threads = p.row_groups * p.column_groups;
    addend.assign(B * S, 0);
    parts.assign(threads * B * 2, 0);
    for (int i : {0, 1}) {
      if (!p.summaries[i].interval) continue;
      summary_pre[i].assign(B * p.summaries[i].width, 0);
      summary_gains[i].assign(threads * 2 * p.summaries[i].width, 0);
    }
    y_sums.assign(B * S, 0);
    d_sum.assign(B * S, 0);
    gains.assign(p.row_groups * GAINS * S, 0);
    if (p.shaper) y_op.assign(B * S, 0);
    operand_memory.assign(B * stride + 64 / sizeof(Op), 0);
    operand =
        reinterpret_cast<Op*>((reinterpret_cast<uintptr_t>(operand_memory.data()) + 63) / 64 * 64);
  }

  // Numbers from a row of the drive, and of its gradient, to the next; a gate's input is between.
  int64_t drive_stride() const { return p.gate_bias ? 2 * S : S; }
  // The sum of one row group's gradients of a vector.
  Real* gain_sums(int64_t row_group, Gain which) {
    return gains.data() + (row_group * GAINS + which) * S;
  }
  bool is_update(int i, int64_t t) const {
    const int64_t interval = p.summaries[i].interval;
    return interval && (p.position + t) % interval == interval - 1;
  }
  bool any_update(int64_t t) const { return is_update(0, t) || is_update(1, t); }
  // The number of updates of a summary before step t, and of steps at which any is updated.
  int64_t updates_before(int i, int64_t t) const { return multiples(p.summaries[i].interval, t); }
  int64_t update_steps_before(int64_t t) const {
    const int64_t a = p.summaries[0].interval, b = p.summaries[1].interval;
    return multiples(a, t) + multiples(b, t) - (a && b ? multiples(std::lcm(a, b), t) : 0);
  }
  int64_t multiples(int64_t interval, int64_t t) const {
    return interval ? (p.position + t) / interval - p.position / interval : 0;
  }
  int64_t saved(int64_t index) const { return p.saves ? index : 0; }
};

// The work of one thread of the grid.
template <class Op>
struct Worker {
  using Real = RealOf<Op>;
  Run<Op>& run;
  Barrier& group;  // of the threads that share these rows
  const Pass& p = run.p;
  const int64_t B = run.B, S = run.S, P = run.P;
  const int64_t row_group, column_group, thread;
  const Range rows, columns;
  std::vector<Segment> segments;
  std::vector<Real> pre;  // rows x own columns

  Worker(Run<Op>& r, Barrier& b, int64_t rg, int64_t cg)
      : run(r),
        group(b),
        row_group(rg),
        column_group(cg),
        thread(rg * r.p.column_groups + cg),
        rows(share(B, B >= 16 * p.row_groups ? 16 : 1, p.row_groups, rg)),
        columns(p.n_heads == 1 ? share(S, NR<Op>, p.column_groups, cg) : heads_columns()) {
    for (int64_t head = columns.begin / P; head * P < columns.end; head++)
      segments.push_back(
          {head, std::max(columns.begin, head * P), std::min(columns.end, head * P + P)});
    pre.assign(rows.size() * columns.size(), 0);
  }

  Range heads_columns() const {
    Range heads = share(p.n_heads, 1, p.column_groups, column_group);
    return {heads.begin * P, heads.end * P};
  }
  Real* pre_row(int64_t row) { return pre.data() + (row - rows.begin) * columns.size(); }
  template <class T>
  T* own_columns(T* base, int64_t row) {
    return base + row * S + columns.begin;
  }
  bool starts_at(int64_t t, int64_t row) const { return p.starts && p.starts[t * B + row]; }
  // The first number of a row at step t, in the drive or in its gradient.
  int64_t drive_at(int64_t t, int64_t row) const { return (t * B + row) * run.drive_stride(); }
  // The gate of the state that step t reads, from column `begin` on.
  StateGate<Real, Op> gate_at(int64_t t, int64_t row, int64_t begin) const {
    if (!p.gate_bias) return {};
    return {static_cast<const Op*>(p.drive) + drive_at(t, row) + S + begin,
            static_cast<const Real*>(p.gate_bias) + begin};
  }
  // The operand of the first step: h before it, or 0 where a document starts.
  void load_first_operand() {
    for (int64_t row = rows.begin; row < rows.end; row++) {
      const StateGate<Real, Op> gate = gate_at(0, row, 0);
      const Real* h = static_cast<const Real*>(p.main) + row * S;
      for (int64_t c = columns.begin; c < columns.end; c++)
        store_one(run.operand + row * run.stride + c, starts_at(0, row) ? Real(0)
                                                      : gate            ? h[c] * gate.one_at(c)
                                                                        : h[c]);
    }
  }

  // pre = operand @ controller in this thread's columns, each head by itself.
  void multiply_state() {
    for (const Segment& s : segments) {
      const int64_t within = s.begin - s.head * P;
      const Op* panels = static_cast<const Op*>(p.controller) + s.head * packed_size<Op>(P, P);
      matmul(run.operand + rows.begin * run.stride + s.head * P, run.stride, rows.size(),
             panels + within / NR<Op> * panel_size<Op>(P), P, s.size(),
             pre.data() + (s.begin - columns.begin), columns.size(), false);
    }
  }

  // out = x @ packed (K x N) for this thread's rows and its share of all N columns.
  void multiply_share(const Op* x, int64_t k, const void* packed, int64_t n, Real* out,
                      bool accumulate) {
    const Range part = share(n, NR<Op>, p.column_groups, column_group);
    if (!part.size()) return;
    matmul(x + rows.begin * k, k, rows.size(),
           static_cast<const Op*>(packed) + part.begin / NR<Op> * panel_size<Op>(k), k, part.size(),
           out + rows.begin * n + part.begin, n, accumulate);
  }

  void round_own_columns(const Real* from, Op* to) {
    for (int64_t row = rows.begin; row < rows.end; row++)
      for (int64_t c = columns.begin; c < columns.end; c++)
        store_one(to + row * S + c, from[row * S + c]);
  }

  // Statistics of a LayerNorm whose columns are divided among threads: (size, mean, squares) of
  // each thread's columns are merged in the order of the threads (Chan et al. 1979).
  void publish(int64_t row, Real a, Real b) {
    Real* part = run.parts.data() + (thread * B + row) * 2;
    part[0] = a, part[1] = b;
  }
  const Real* published(int64_t cg, int64_t row) const {
    return run.parts.data() + ((row_group * p.column_groups + cg) * B + row) * 2;
  }
  void merge_moments(int64_t row, Real* mean, Real* squares) const {
    Real n = 0, m = 0, q = 0;
    for (int64_t cg = 0; cg < p.column_groups; cg++) {
      const Real k = Real(share(S, NR<Op>, p.column_groups, cg).size());
      if (k == 0) continue;
      const Real* part = published(cg, row);
      const Real delta = part[0] - m, all = n + k;
      m += delta * k / all;
      q += part[1] + delta * delta * n * k / all;
      n = all;
    }
    *mean = m, *squares = q;
  }
  void merge_sums(int64_t row, Real* s1, Real* s2) const {
    *s1 = *s2 = 0;
    for (int64_t cg = 0; cg < p.column_groups; cg++)
      *s1 += published(cg, row)[0], *s2 += published(cg, row)[1];
  }

  // recurrence_forward.h
  void forward();
  void begin_window(int64_t window);
  void reset_summaries(int64_t t);
  Real sum_pre(int64_t t, int64_t row, const Segment& s);
  void finish_step(int64_t t, int64_t row, const Segment& s, Real mean, Real squares);
  void norm_of_own_columns(int64_t t);
  void norm_of_shared_columns(int64_t t);
  void update(int64_t t);
  Op* old_value(int i, int64_t t);
  Op* normed(int i, int64_t t);
  void round_share(const Real* from, Op* to, int64_t n);
  Range summary_rows() const;
  void summary_norm(int i, int64_t t);

  // recurrence_backward.h
  void backward();
  void reset_summaries_backward(int64_t row);
  void norm_backward(int64_t t, bool updated);
  void finish_step_backward(int64_t t, int64_t row, const Segment& s, Real s1, Real s2);
  void gate_of_own_columns_backward(int64_t t);
  void begin_window_backward(int64_t window);
  void update_backward(int64_t t);
  Op* d_value(int i, int64_t t);
  Op* d_summary_pre(int i, int64_t t);
  void summary_norm_backward(int i, int64_t t);
};

}  // namespace ys::three_tier
