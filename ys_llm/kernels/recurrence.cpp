// The three-tier recurrence over a whole sequence, forward and back: equation and semantics are
// those of ys_llm/ops/recurrence.py, whose `reference` this is tied to.
//
// All arrays are row-major and time-major. Op is the type of the products' operands (double, float
// or bf16), Real that of sums, statistics and state (double or float). Threads form a grid: rows of
// the batch x columns of the state. Rows never meet. Threads that share rows wait for each other
// twice a step, for the LayerNorm's statistics and for the whole of h; with heads, columns are dealt
// out by heads and do not meet either, but where a summary is renewed.

#include "gemm.h"

namespace ys {

// One summary tier; U updates of it fall into the sequence. `every` is 0 where there is none.
struct Tier {
  int64_t every, width;
  const void *controller, *influencer, *shaper;  // packed: S x R, S x R, R x S; transposed on the way back
  const void *gain, *bias;                       // R
  void* held;                                    // B x S: before the first step, and after the last
  void *old_held, *x_hat, *rstd, *normed;        // what each update leaves: U x B x (S, R, heads, R)
  void *d_held, *d_pre;                          // its gradients: U x B x S, U x B x R
  void *d_gain, *d_bias;                         // R
};

struct Pass {
  int64_t length, batch, d_state, heads, position, row_groups, column_groups, keeps;
  const void* drive;           // T x B x S
  const uint8_t* starts;       // T x B, or none
  const void *controller, *shaper;  // packed: a matrix for each head; S x S or none
  const void *gain, *bias, *entry, *drive_bias;  // S; the last two may be none
  void* main;                  // B x S: h before the first step and after the last; or its gradient
  void *h, *x_hat, *rstd;      // T x B x (S, S, heads)
  void *held_sum, *y;          // windows x B x S; firings x B x S where there is a shaper
  const void* d_h;             // T x B x S
  void *d_pre, *d_y;           // T x B x S; as y
  void *d_gain, *d_bias, *d_entry, *d_drive_bias;  // S
  Tier tiers[2];
};

template <class Real> constexpr Real EPS = Real(1e-5);  // of every LayerNorm

// Ask for what will be read a step later.
template <class T> inline void fetch(const T* p, int64_t n) {
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

template <class Real> Real squared_distances(const Real* pre, Real mean, int64_t n) {
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

// x_hat = (pre - mean) rstd and h = x_hat gain + bias, where they are asked for also as operand of the
// next step and as Real state. What only the way back reads goes past the caches.
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

// grad <- (grad + d_h + extra) gain, with what gain and bias get of it; adds up s1 = sum of grad and
// s2 = sum of grad x_hat. `d_h` and `extra` may be none.
template <class Real, class Op, class Saved>
void through_gain(Real* grad, const Op* d_h, const Real* extra, const Saved* x_hat, int64_t to_next, const Real* gain,
                  Real* d_gain, Real* d_bias, int64_t n, Real* s1, Real* s2) {
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
    Real g = grad[i] + (d_h ? load_one(d_h + i) : 0) + (extra ? extra[i] : 0), x = load_one(x_hat + i);
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
void through_norm(const Real* grad, const Saved* x_hat, Real rstd, Real mean1, Real mean2, int64_t n,
                  Op* d_pre, Op* operand, Real* d_sum) {
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

constexpr int64_t GAINS = 4;  // vectors whose gradients are added up: gain, bias, entry, drive_bias

// Where the columns of one head, or some of them, lie.
struct Segment {
  int64_t head, begin, end;
  int64_t size() const { return end - begin; }
};

template <class Op> struct Run {
  using Real = RealOf<Op>;
  const Pass& p;
  const int64_t T = p.length, B = p.batch, S = p.d_state, P = S / p.heads;
  const bool splits;  // whether threads share the columns of one LayerNorm
  std::vector<Real> addend, parts, pre_tier[2], fire, d_sum, gains, tier_gains[2];
  std::vector<Op> y_op, operand_room;
  Op* operand;  // B x step: what passes on to the next step, 0 where a document starts there
  // Rows lie a cache line more than their length apart, or all of them would want the same places of
  // the cache.
  const int64_t step = S + int64_t(64 / sizeof(Op));

  Run(const Pass& pass)
      : p(pass), splits(p.heads == 1 && p.column_groups > 1) {
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
    operand = reinterpret_cast<Op*>((reinterpret_cast<uintptr_t>(operand_room.data()) + 63) / 64 * 64);
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
template <class Op> struct Worker {
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
      : run(r), group(b), row_group(rg), column_group(cg), thread(rg * r.p.column_groups + cg),
        rows(share(B, B >= 16 * p.row_groups ? 16 : 1, p.row_groups, rg)),
        columns(p.heads == 1 ? share(S, NR<Op>, p.column_groups, cg) : heads_columns()) {
    for (int64_t head = columns.begin / P; head * P < columns.end; head++)
      segments.push_back({head, std::max(columns.begin, head * P), std::min(columns.end, head * P + P)});
    pre.assign(rows.size() * columns.size(), 0);
  }

  Range heads_columns() const {
    Range heads = share(p.heads, 1, p.column_groups, column_group);
    return {heads.begin * P, heads.end * P};
  }
  Real* pre_row(int64_t row) { return pre.data() + (row - rows.begin) * columns.size(); }
  template <class T> T* own(T* base, int64_t row) { return base + row * S + columns.begin; }
  bool starts_at(int64_t t, int64_t row) const { return p.starts && p.starts[t * B + row]; }
  // The operand of the first step: h before it, of the rows that go on.
  void begin() {
    for (int64_t row = rows.begin; row < rows.end; row++)
      for (int64_t c = columns.begin; c < columns.end; c++)
        store_one(run.operand + row * run.step + c, starts_at(0, row) ? Real(0) : static_cast<const Real*>(p.main)[row * S + c]);
  }

  // pre = operand @ controller in the own columns, of each head by itself.
  void step_product() {
    for (const Segment& s : segments) {
      const int64_t within = s.begin - s.head * P;
      const Op* panels = static_cast<const Op*>(p.controller) + s.head * packed_size<Op>(P, P);
      product(run.operand + rows.begin * run.step + s.head * P, run.step, rows.size(),
              panels + within / NR<Op> * panel_size<Op>(P), P, s.size(), pre.data() + (s.begin - columns.begin),
              columns.size(), false);
    }
  }

  // out = x @ packed (K x N) for the own rows and the own share of all N columns.
  void shared_product(const Op* x, int64_t k, const void* packed, int64_t n, Real* out, bool accumulate) {
    const Range part = share(n, NR<Op>, p.column_groups, column_group);
    if (!part.size()) return;
    product(x + rows.begin * k, k, rows.size(),
            static_cast<const Op*>(packed) + part.begin / NR<Op> * panel_size<Op>(k), k, part.size(),
            out + rows.begin * n + part.begin, n, accumulate);
  }

  void narrow_own(const Real* from, Op* to) {
    for (int64_t row = rows.begin; row < rows.end; row++)
      for (int64_t c = columns.begin; c < columns.end; c++) store_one(to + row * S + c, from[row * S + c]);
  }

  // The statistics of a LayerNorm whose columns are dealt out: (size, mean, squares) of each thread's
  // share are put together in the order of the threads, as Chan et al. 1979 have it.
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
    for (int64_t cg = 0; cg < p.column_groups; cg++) *s1 += published(cg, row)[0], *s2 += published(cg, row)[1];
  }

  // ---- forward

  void forward() {
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
  void begin_window(int64_t window) {
    const Real *local = static_cast<const Real*>(p.tiers[0].held), *global = static_cast<const Real*>(p.tiers[1].held);
    const Real *entry = static_cast<const Real*>(p.entry), *bias = static_cast<const Real*>(p.drive_bias);
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
  void forget_held(int64_t t) {
    for (int64_t row = rows.begin; p.starts && row < rows.end; row++) {
      if (!starts_at(t, row)) continue;
      for (const Tier& tier : p.tiers) std::fill_n(own(static_cast<Real*>(tier.held), row), columns.size(), Real(0));
      if (p.drive_bias) std::copy_n(static_cast<const Real*>(p.drive_bias) + columns.begin, columns.size(), own(run.addend.data(), row));
      else std::fill_n(own(run.addend.data(), row), columns.size(), Real(0));
    }
  }

  Real add_up(int64_t t, int64_t row, const Segment& s) {
    const Op* drive = static_cast<const Op*>(p.drive) + (t * B + row) * S + s.begin;
    const Op* next = t + 1 < p.length ? drive + B * S : drive;
    return add_drive(pre_row(row) + s.begin - columns.begin, drive, next, run.addend.data() + row * S + s.begin, s.size());
  }

  void write_step(int64_t t, int64_t row, const Segment& s, Real mean, Real squares) {
    const Real rstd = 1 / std::sqrt(squares / Real(P) + EPS<Real>);
    const int64_t at = (t * B + row) * S + s.begin;
    if (p.keeps && s.begin == s.head * P) static_cast<Real*>(p.rstd)[(t * B + row) * p.heads + s.head] = rstd;
    normalise(pre_row(row) + s.begin - columns.begin, mean, rstd, static_cast<const Real*>(p.gain) + s.begin,
              static_cast<const Real*>(p.bias) + s.begin, s.size(),
              p.keeps ? static_cast<Op*>(p.x_hat) + at : static_cast<Op*>(nullptr), static_cast<Op*>(p.h) + at,
              run.operand + row * run.step + s.begin,
              t + 1 == p.length ? static_cast<Real*>(p.main) + row * S + s.begin : nullptr);
    if (t + 1 < p.length && starts_at(t + 1, row)) std::fill_n(run.operand + row * run.step + s.begin, s.size(), Op(0));
  }

  void whole_norm(int64_t t) {
    for (int64_t row = rows.begin; row < rows.end; row++)
      for (const Segment& s : segments) {
        const Real mean = add_up(t, row, s) / Real(P);
        write_step(t, row, s, mean, squared_distances(pre_row(row) + s.begin - columns.begin, mean, s.size()));
      }
  }

  void split_norm(int64_t t) {
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
  void update(int64_t t) {
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
      shared_product(old_held(i, t), S, p.tiers[i].controller, p.tiers[i].width, run.pre_tier[i].data(), false);
      shared_product(y, S, p.tiers[i].influencer, p.tiers[i].width, run.pre_tier[i].data(), true);
    }
    group.wait();
    for (int i : {0, 1})
      if (run.fires(i, t)) tier_norm(i, t);
    group.wait();
    for (int i : {0, 1})
      if (run.fires(i, t))
        shared_product(normed(i, t), p.tiers[i].width, p.tiers[i].shaper, S, static_cast<Real*>(p.tiers[i].held), false);
    group.wait();
  }

  Op* old_held(int i, int64_t t) {
    return static_cast<Op*>(p.tiers[i].old_held) + run.kept(run.updates(i, t)) * B * S;
  }
  Op* normed(int i, int64_t t) {
    return static_cast<Op*>(p.tiers[i].normed) + run.kept(run.updates(i, t)) * B * p.tiers[i].width;
  }
  void narrow_share(const Real* from, Op* to, int64_t n) {
    const Range part = share(n, NR<Op>, p.column_groups, column_group);
    for (int64_t row = rows.begin; row < rows.end; row++)
      for (int64_t c = part.begin; c < part.end; c++) store_one(to + row * n + c, from[row * n + c]);
  }
  // Of a summary's LayerNorm, whose rows are dealt out: they are few, and narrow.
  Range tier_rows() const {
    Range part = share(rows.size(), 1, p.column_groups, column_group);
    return {rows.begin + part.begin, rows.begin + part.end};
  }

  void tier_norm(int i, int64_t t) {
    const Tier& tier = p.tiers[i];
    const int64_t R = tier.width, each = R / p.heads, update = run.kept(run.updates(i, t));
    const Real *gain = static_cast<const Real*>(tier.gain), *bias = static_cast<const Real*>(tier.bias);
    const Range part = tier_rows();
    for (int64_t row = part.begin; row < part.end; row++)
      for (int64_t head = 0; head < p.heads; head++) {
        const int64_t at = row * R + head * each, saved = update * B * R + at;
        Real* values = run.pre_tier[i].data() + at;
        Real mean = 0;
        for (int64_t c = 0; c < each; c++) mean += values[c];
        mean /= Real(each);
        const Real rstd = 1 / std::sqrt(squared_distances(values, mean, each) / Real(each) + EPS<Real>);
        if (p.keeps) static_cast<Real*>(tier.rstd)[(update * B + row) * p.heads + head] = rstd;
        normalise(values, mean, rstd, gain + head * each, bias + head * each, each,
                  p.keeps ? static_cast<Real*>(tier.x_hat) + saved : static_cast<Real*>(nullptr),
                  static_cast<Op*>(tier.normed) + saved, static_cast<Op*>(nullptr), static_cast<Real*>(nullptr));
      }
  }

  // ---- back

  void backward() {
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
  void forget_held_backward(int64_t row) {
    Real* d_drive_bias = run.gains.data() + (row_group * GAINS + 3) * S;
    for (int64_t c = columns.begin; c < columns.end; c++) {
      d_drive_bias[c] += run.d_sum[row * S + c];
      run.d_sum[row * S + c] = 0;
      for (const Tier& tier : p.tiers) static_cast<Real*>(tier.held)[row * S + c] = 0;
    }
  }

  void norm_backward(int64_t t, bool fired) {
    Real *d_gain = run.gains.data() + row_group * GAINS * S, *d_bias = d_gain + S;
    const Real* gain = static_cast<const Real*>(p.gain);
    for (int64_t row = rows.begin; row < rows.end; row++)
      for (const Segment& s : segments) {
        const int64_t at = (t * B + row) * S + s.begin;
        Real s1 = 0, s2 = 0;
        through_gain(pre_row(row) + s.begin - columns.begin, static_cast<const Op*>(p.d_h) + at,
                     fired ? run.fire.data() + row * S + s.begin : static_cast<const Real*>(nullptr),
                     static_cast<const Op*>(p.x_hat) + at, t ? B * S : 0, gain + s.begin, d_gain + s.begin, d_bias + s.begin, s.size(),
                     &s1, &s2);
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

  void write_step_backward(int64_t t, int64_t row, const Segment& s, Real s1, Real s2) {
    const int64_t at = (t * B + row) * S + s.begin;
    const Real rstd = static_cast<const Real*>(p.rstd)[(t * B + row) * p.heads + s.head];
    through_norm(pre_row(row) + s.begin - columns.begin, static_cast<const Op*>(p.x_hat) + at, rstd, s1 / Real(P),
                 s2 / Real(P), s.size(), static_cast<Op*>(p.d_pre) + at, run.operand + row * run.step + s.begin,
                 run.d_sum.data() + row * S + s.begin);
    if (starts_at(t, row)) std::fill_n(run.operand + row * run.step + s.begin, s.size(), Op(0));
  }

  // The first step of a window is behind: what its steps gave goes to L and G.
  void begin_window_backward(int64_t window) {
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
  void update_backward(int64_t t) {
    for (int i : {0, 1})
      if (run.fires(i, t)) narrow_own(static_cast<const Real*>(p.tiers[i].held), d_held(i, t));
    group.wait();
    for (int i : {0, 1})
      if (run.fires(i, t))
        shared_product(d_held(i, t), S, p.tiers[i].shaper, p.tiers[i].width, run.pre_tier[i].data(), false);
    group.wait();
    for (int i : {0, 1})
      if (run.fires(i, t)) tier_norm_backward(i, t);
    group.wait();
    bool first = true;
    for (int i : {0, 1}) {
      if (!run.fires(i, t)) continue;
      shared_product(d_pre_tier(i, t), p.tiers[i].width, p.tiers[i].controller, S, static_cast<Real*>(p.tiers[i].held), false);
      shared_product(d_pre_tier(i, t), p.tiers[i].width, p.tiers[i].influencer, S, run.fire.data(), !first);
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

  Op* d_held(int i, int64_t t) { return static_cast<Op*>(p.tiers[i].d_held) + run.updates(i, t) * B * S; }
  Op* d_pre_tier(int i, int64_t t) {
    return static_cast<Op*>(p.tiers[i].d_pre) + run.updates(i, t) * B * p.tiers[i].width;
  }

  void tier_norm_backward(int i, int64_t t) {
    const Tier& tier = p.tiers[i];
    const int64_t R = tier.width, each = R / p.heads, update = run.updates(i, t);
    Real *d_gain = run.tier_gains[i].data() + thread * 2 * R, *d_bias = d_gain + R;
    const Range part = tier_rows();
    for (int64_t row = part.begin; row < part.end; row++)
      for (int64_t head = 0; head < p.heads; head++) {
        const int64_t c = head * each, at = row * R + c, saved = update * B * R + at;
        const Real* x_hat = static_cast<const Real*>(tier.x_hat) + saved;
        Real s1 = 0, s2 = 0, *grad = run.pre_tier[i].data() + at;
        through_gain(grad, static_cast<const Real*>(nullptr), static_cast<const Real*>(nullptr), x_hat, 0,
                     static_cast<const Real*>(tier.gain) + c, d_gain + c, d_bias + c, each, &s1, &s2);
        const Real rstd = static_cast<const Real*>(tier.rstd)[(update * B + row) * p.heads + head];
        through_norm(grad, x_hat, rstd, s1 / Real(each), s2 / Real(each), each,
                     static_cast<Op*>(tier.d_pre) + saved, static_cast<Op*>(nullptr), static_cast<Real*>(nullptr));
      }
  }
};

template <class Real> void add_up_parts(const std::vector<Real>& parts, int64_t n, int64_t offset, int64_t step, void* out) {
  if (!out) return;
  for (int64_t c = 0; c < n; c++) {
    Real total = 0;
    for (size_t at = size_t(offset + c); at < parts.size(); at += size_t(step)) total += parts[at];
    static_cast<Real*>(out)[c] = total;
  }
}

template <class Op> void run_pass(Pass pass, bool back) {
  const int threads = int(pass.row_groups * pass.column_groups);
#pragma omp parallel num_threads(threads)
  {
#pragma omp master
    if (omp_get_num_threads() != threads) pass.row_groups = pass.column_groups = 1;
  }
  Run<Op> run(pass);
  std::vector<std::unique_ptr<Barrier>> groups;
  for (int64_t i = 0; i < pass.row_groups; i++) groups.emplace_back(new Barrier(int(pass.column_groups)));
#pragma omp parallel num_threads(int(pass.row_groups * pass.column_groups))
  {
    const int64_t thread = omp_get_thread_num(), rg = thread / pass.column_groups, cg = thread % pass.column_groups;
    Worker<Op> worker(run, *groups[size_t(rg)], rg, cg);
    if (back) worker.backward();
    else worker.forward();
  }
  if (!back) return;
  void* gains[GAINS] = {pass.d_gain, pass.d_bias, pass.d_entry, pass.d_drive_bias};
  for (int64_t i = 0; i < GAINS; i++) add_up_parts(run.gains, pass.d_state, i * pass.d_state, GAINS * pass.d_state, gains[i]);
  for (int i : {0, 1}) {
    const int64_t R = pass.tiers[i].width;
    if (!pass.tiers[i].every) continue;
    add_up_parts(run.tier_gains[i], R, 0, 2 * R, pass.tiers[i].d_gain);
    add_up_parts(run.tier_gains[i], R, R, 2 * R, pass.tiers[i].d_bias);
  }
}

// Panels of n matrices one after another, from Real or double memory.
template <class Op, class Source>
void pack(const Source* source, int64_t n, int64_t step, int64_t step_k, int64_t step_n, int64_t k, int64_t columns,
          Op* packed) {
  const int64_t panels = (columns + NR<Op> - 1) / NR<Op>;
#pragma omp parallel for collapse(2)
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < panels; j++)
      pack_panel(source + i * step + j * NR<Op> * step_n, step_k, step_n, k, std::min<int64_t>(NR<Op>, columns - j * NR<Op>),
                 packed + i * packed_size<Op>(k, columns) + j * panel_size<Op>(k));
}

}  // namespace ys

extern "C" {

enum Operands { F64 = 0, F32 = 1, BF16 = 2 };

int64_t ys_packed_size(int operands, int64_t k, int64_t n) {
  return operands == BF16 ? ys::packed_size<ys::bf16>(k, n)
         : operands == F32 ? ys::packed_size<float>(k, n)
                           : ys::packed_size<double>(k, n);
}

// `n` matrices K x N (numbers apart: `step`) with the given steps between rows and columns.
void ys_pack(int operands, const void* source, int64_t n, int64_t step, int64_t step_k, int64_t step_n, int64_t k,
             int64_t columns, void* packed) {
  if (operands == F64)
    ys::pack(static_cast<const double*>(source), n, step, step_k, step_n, k, columns, static_cast<double*>(packed));
  else if (operands == F32)
    ys::pack(static_cast<const float*>(source), n, step, step_k, step_n, k, columns, static_cast<float*>(packed));
  else
    ys::pack(static_cast<const float*>(source), n, step, step_k, step_n, k, columns, static_cast<ys::bf16*>(packed));
}

void ys_recurrence(int operands, const ys::Pass* pass, int back) {
  if (operands == F64) ys::run_pass<double>(*pass, back);
  else if (operands == F32) ys::run_pass<float>(*pass, back);
  else ys::run_pass<ys::bf16>(*pass, back);
}

// Which units the bfloat16 products run on.
const char* ys_units() {
#if defined(__AMX_BF16__)
  if (ys::amx_is_allowed()) return "AMX";
#endif
#if defined(__AVX512BF16__)
  return "AVX512-BF16";
#elif defined(__AVX512F__)
  return "AVX-512";
#else
  return "vectors";
#endif
}
}
