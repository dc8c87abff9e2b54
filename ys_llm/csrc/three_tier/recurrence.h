// The three-tier recurrence over a whole sequence, forward and back: equation and semantics are
// those of ys_llm/ops/recurrence.py, whose `reference` this is tied to.
//
// All arrays are row-major and time-major. Op is the type of the products' operands (double, float
// or bf16), Real that of sums, statistics and state (double or float). Threads form a grid: rows of
// the batch x columns of the state. Rows never meet. Threads that share rows wait for each other
// twice a step, for the LayerNorm's statistics and for the whole of h; with heads, columns are
// dealt out by heads and do not meet either, but where a summary is renewed.

#pragma once

#include "gemm.h"
#include "norm.h"

namespace ys {

// One summary tier; U updates of it fall into the sequence. `every` is 0 where there is none.
struct Tier {
  int64_t every, width;
  const void *controller, *influencer,
      *shaper;              // packed: S x R, S x R, R x S; transposed on the way back
  const void *gain, *bias;  // R
  void* held;               // B x S: before the first step, and after the last
  void *old_held, *x_hat, *rstd, *normed;  // what each update leaves: U x B x (S, R, heads, R)
  void *d_held, *d_pre;                    // its gradients: U x B x S, U x B x R
  void *d_gain, *d_bias;                   // R
};

struct Pass {
  int64_t length, batch, d_state, heads, position, row_groups, column_groups, keeps;
  const void* drive;                             // T x B x S
  const uint8_t* starts;                         // T x B, or none
  const void *controller, *shaper;               // packed: a matrix for each head; S x S or none
  const void *gain, *bias, *entry, *drive_bias;  // S; the last two may be none
  void* main;              // B x S: h before the first step and after the last; or its gradient
  void *h, *x_hat, *rstd;  // T x B x (S, S, heads)
  void *held_sum, *y;      // windows x B x S; firings x B x S where there is a shaper
  const void* d_h;         // T x B x S
  void *d_pre, *d_y;       // T x B x S; as y
  void *d_gain, *d_bias, *d_entry, *d_drive_bias;  // S
  Tier tiers[2];
};

constexpr int64_t GAINS = 4;  // vectors whose gradients are added up: gain, bias, entry, drive_bias

// Where the columns of one head, or some of them, lie.
struct Segment {
  int64_t head, begin, end;
  int64_t size() const { return end - begin; }
};

template <class Op>
struct Run {
  using Real = RealOf<Op>;
  const Pass& p;
  const int64_t T = p.length, B = p.batch, S = p.d_state, P = S / p.heads;
  const bool splits;  // whether threads share the columns of one LayerNorm
  std::vector<Real> addend, parts, pre_tier[2], fire, d_sum, gains, tier_gains[2];
  std::vector<Op> y_op, operand_room;
  Op* operand;  // B x step: what passes on to the next step, 0 where a document starts there
  // Rows lie a cache line more than their length apart, or all of them would want the same places
  // of the cache.
  const int64_t step = S + int64_t(64 / sizeof(Op));

  Run(const Pass& pass) : p(pass), splits(p.heads == 1 && p.column_groups > 1) {
    const int64_t threads = p.row_groups * p.column_groups;
    addend.assign(B * S, 0);
    parts.assign(threads * B * 2, 0);
    for (int i : {0, 1}) {
      if (!p.tiers[i].every) continue;
      pre_tier[i].assign(B * p.tiers[i].width, 0);
      tier_gains[i].assign(threads * 2 * p.tiers[i].width, 0);
    }
    fire.assign(B * S, 0);
    d_sum.assign(B * S, 0);
    gains.assign(p.row_groups * GAINS * S, 0);
    if (p.shaper) y_op.assign(B * S, 0);
    operand_room.assign(B * step + 64 / sizeof(Op), 0);
    operand =
        reinterpret_cast<Op*>((reinterpret_cast<uintptr_t>(operand_room.data()) + 63) / 64 * 64);
  }

  bool fires(int i, int64_t t) const {
    const int64_t every = p.tiers[i].every;
    return every && (p.position + t) % every == every - 1;
  }
  bool any_fires(int64_t t) const { return fires(0, t) || fires(1, t); }
  // How many updates of a tier lie before step t; and how many steps at which any tier fires.
  int64_t updates(int i, int64_t t) const { return multiples(p.tiers[i].every, t); }
  int64_t firings(int64_t t) const {
    const int64_t a = p.tiers[0].every, b = p.tiers[1].every;
    return multiples(a, t) + multiples(b, t) - (a && b ? multiples(std::lcm(a, b), t) : 0);
  }
  int64_t multiples(int64_t every, int64_t t) const {
    return every ? (p.position + t) / every - p.position / every : 0;
  }
  int64_t kept(int64_t index) const { return p.keeps ? index : 0; }
};

// What one thread of the grid does.
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
        columns(p.heads == 1 ? share(S, NR<Op>, p.column_groups, cg) : heads_columns()) {
    for (int64_t head = columns.begin / P; head * P < columns.end; head++)
      segments.push_back(
          {head, std::max(columns.begin, head * P), std::min(columns.end, head * P + P)});
    pre.assign(rows.size() * columns.size(), 0);
  }

  Range heads_columns() const {
    Range heads = share(p.heads, 1, p.column_groups, column_group);
    return {heads.begin * P, heads.end * P};
  }
  Real* pre_row(int64_t row) { return pre.data() + (row - rows.begin) * columns.size(); }
  template <class T>
  T* own(T* base, int64_t row) {
    return base + row * S + columns.begin;
  }
  bool starts_at(int64_t t, int64_t row) const { return p.starts && p.starts[t * B + row]; }
  // The operand of the first step: h before it, of the rows that go on.
  void begin() {
    for (int64_t row = rows.begin; row < rows.end; row++)
      for (int64_t c = columns.begin; c < columns.end; c++)
        store_one(run.operand + row * run.step + c,
                  starts_at(0, row) ? Real(0) : static_cast<const Real*>(p.main)[row * S + c]);
  }

  // pre = operand @ controller in the own columns, of each head by itself.
  void step_product() {
    for (const Segment& s : segments) {
      const int64_t within = s.begin - s.head * P;
      const Op* panels = static_cast<const Op*>(p.controller) + s.head * packed_size<Op>(P, P);
      product(run.operand + rows.begin * run.step + s.head * P, run.step, rows.size(),
              panels + within / NR<Op> * panel_size<Op>(P), P, s.size(),
              pre.data() + (s.begin - columns.begin), columns.size(), false);
    }
  }

  // out = x @ packed (K x N) for the own rows and the own share of all N columns.
  void shared_product(const Op* x, int64_t k, const void* packed, int64_t n, Real* out,
                      bool accumulate) {
    const Range part = share(n, NR<Op>, p.column_groups, column_group);
    if (!part.size()) return;
    product(x + rows.begin * k, k, rows.size(),
            static_cast<const Op*>(packed) + part.begin / NR<Op> * panel_size<Op>(k), k,
            part.size(), out + rows.begin * n + part.begin, n, accumulate);
  }

  void narrow_own(const Real* from, Op* to) {
    for (int64_t row = rows.begin; row < rows.end; row++)
      for (int64_t c = columns.begin; c < columns.end; c++)
        store_one(to + row * S + c, from[row * S + c]);
  }

  // The statistics of a LayerNorm whose columns are dealt out: (size, mean, squares) of each
  // thread's share are put together in the order of the threads, as Chan et al. 1979 have it.
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
  void forget_held(int64_t t);
  Real add_up(int64_t t, int64_t row, const Segment& s);
  void write_step(int64_t t, int64_t row, const Segment& s, Real mean, Real squares);
  void whole_norm(int64_t t);
  void split_norm(int64_t t);
  void update(int64_t t);
  Op* old_held(int i, int64_t t);
  Op* normed(int i, int64_t t);
  void narrow_share(const Real* from, Op* to, int64_t n);
  Range tier_rows() const;
  void tier_norm(int i, int64_t t);

  // recurrence_back.h
  void backward();
  void forget_held_backward(int64_t row);
  void norm_backward(int64_t t, bool fired);
  void write_step_backward(int64_t t, int64_t row, const Segment& s, Real s1, Real s2);
  void begin_window_backward(int64_t window);
  void update_backward(int64_t t);
  Op* d_held(int i, int64_t t);
  Op* d_pre_tier(int i, int64_t t);
  void tier_norm_backward(int i, int64_t t);
};

}  // namespace ys
