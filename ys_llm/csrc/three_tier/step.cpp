// The decode step of the three-tier mixer; the equation is that of ops/three_tier/reference.py,
// with the drive formed here. A state is h, L and G, one after the other.

#include "../exponential.h"
#include "../mixer_step.h"
#include "../norm.h"

namespace ys::three_tier {
namespace {

using Weights = ys_three_tier_weights;
using SummaryWeights = ys_three_tier_summary_weights;

const Weights& weights_of(const void* weights) { return *static_cast<const Weights*>(weights); }

int64_t widest_summary(const Weights& w) {
  return std::max(w.summaries[0].width, w.summaries[1].width);
}
int64_t state_size(const void* weights) { return 3 * weights_of(weights).d_state; }
int64_t shared_scratch(const void* weights) {
  const Weights& w = weights_of(weights);
  return 3 * padded(w.d_state) + 2 * padded(widest_summary(w));
}
int64_t own_scratch(const void* weights) {
  const Weights& w = weights_of(weights);
  return padded(w.d_state) + padded(widest_summary(w));
}

// Each head's share of x is normalised by itself.
template <class Real>
void norm_heads(const Real* x, const ys_layer_norm& norm, int64_t n, const Weights& w, Real* y) {
  const Real *gain = static_cast<const Real*>(norm.gain),
             *bias = static_cast<const Real*>(norm.bias);
  const int64_t width = n / w.n_heads;
  for (int64_t i = 0; i < n; i += width)
    layer_norm(x + i, row_sum(x + i, width) / Real(width), gain + i, bias + i, width,
               Real(w.norm_eps), static_cast<Real*>(nullptr), y + i);
}

template <class Real>
class Step {
 public:
  Step(const Weights& weights, const StepArguments<Real>& arguments)
      : w_(weights), a_(arguments), columns_(arguments.team.part(weights.d_state)) {
    Scratch<Real> shared = a_.shared, own = a_.own;
    pre_ = shared.take(w_.d_state);
    y_ = shared.take(w_.d_state);
    kept_ = shared.take(w_.d_state);
    for (Rows<Real>& rows : summary_pre_) rows = shared.take(widest_summary(w_));
    h_ = own.take(w_.d_state);
    normed_ = own.take(widest_summary(w_));
  }

  void run() {
    write_pre();
    a_.team.barrier.wait();
    norm();
    apply(w_.out_proj, a_.team.part(w_.out_proj.n_out), h_.all(a_.n), a_.out, a_.put);
    if (!any_update()) return;
    if (w_.shaper.weight) {
      apply(w_.shaper, columns_, h_.all(a_.n), y_.all(a_.n));
      a_.team.barrier.wait();
    }
    for (int which : {0, 1}) write_summary_pre(which);
    a_.team.barrier.wait();
    for (int which : {0, 1}) update(which);
  }

 private:
  Real* tier(int64_t b, int64_t which) const { return a_.states.of[b] + which * w_.d_state; }
  bool is_update(const SummaryWeights& summary, int64_t b) const {
    return summary.interval && a_.positions[b] % summary.interval == summary.interval - 1;
  }
  bool any_update() const {
    for (int64_t b = 0; b < a_.n; b++)
      if (is_update(w_.summaries[0], b) || is_update(w_.summaries[1], b)) return true;
    return false;
  }

  // What the controller multiplies: h, or tanh(gate x) * h.
  Vectors<Real> kept() {
    Vectors<Real> states;
    for (int64_t b = 0; b < a_.n; b++) states.add(w_.gate.weight ? kept_[b] : tier(b, 0));
    if (!w_.gate.weight) return states;
    apply(w_.gate, columns_, a_.x, states);
    for (int64_t b = 0; b < a_.n; b++)
      for (int64_t i = columns_.begin; i < columns_.end; i += Lanes<Real>::n) {
        const int64_t left = columns_.end - i;
        const Vec<Real> f = hyperbolic_tangent<Real>(load_part<Real>(kept_[b] + i, left));
        store_part<Real>(kept_[b] + i, f * load_part<Real>(tier(b, 0) + i, left), left);
      }
    a_.team.barrier.wait();
    return states;
  }

  // pre = in_proj x + kept controller + summary_scale (L + G)
  void write_pre() {
    const Vectors<Real> pre = pre_.all(a_.n);
    apply(w_.in_proj, columns_, a_.x, pre);
    apply(w_.controller, columns_, kept(), pre, Put::ADD);
    const Real* summary_scale = static_cast<const Real*>(w_.summary_scale);
    for (int64_t b = 0; b < a_.n; b++) {
      const Real *local = tier(b, 1), *global = tier(b, 2);
      for (int64_t i = columns_.begin; i < columns_.end; i++)
        pre_[b][i] += (summary_scale ? summary_scale[i] : 1) * (local[i] + global[i]);
    }
  }

  // h = LN(pre): all of it in each thread's own memory, its columns in the state.
  void norm() {
    for (int64_t b = 0; b < a_.n; b++) {
      norm_heads(pre_[b], w_.norm, w_.d_state, w_, h_[b]);
      std::copy_n(h_[b] + columns_.begin, columns_.size(), tier(b, 0) + columns_.begin);
    }
  }

  // summary_pre = summary controller + y influencer, for the sequences whose interval ends
  void write_summary_pre(int which) {
    const SummaryWeights& summary = w_.summaries[which];
    Vectors<Real> values, y, pre;
    for (int64_t b = 0; b < a_.n; b++)
      if (is_update(summary, b)) {
        values.add(tier(b, 1 + which));
        y.add(w_.shaper.weight ? y_[b] : h_[b]);
        pre.add(summary_pre_[which][b]);
      }
    apply(summary.controller, a_.team.part(summary.width), values, pre);
    apply(summary.influencer, a_.team.part(summary.width), y, pre, Put::ADD);
  }

  // L, G <- LN(summary_pre) shaper; they are read from the next token on
  void update(int which) {
    const SummaryWeights& summary = w_.summaries[which];
    Vectors<Real> normed, values;
    for (int64_t b = 0; b < a_.n; b++)
      if (is_update(summary, b)) {
        norm_heads(summary_pre_[which][b], summary.norm, summary.width, w_, normed_[b]);
        normed.add(normed_[b]);
        values.add(tier(b, 1 + which));
      }
    apply(summary.shaper, columns_, normed, values);
  }

  const Weights& w_;
  const StepArguments<Real>& a_;
  const Range columns_;
  Rows<Real> pre_, y_, kept_, summary_pre_[2], h_, normed_;
};

template <class Real>
void step(const void* weights, const StepArguments<Real>& arguments) {
  Step<Real>(weights_of(weights), arguments).run();
}

template <class Real>
constexpr MixerStep<Real> STEP{state_size, shared_scratch, own_scratch, step<Real>};
const Registration registration("three_tier", STEP<float>, STEP<double>);

}  // namespace
}  // namespace ys::three_tier
