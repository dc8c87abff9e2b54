// The decode step of a model, for several sequences at once: embedding, layers, head.
//
// With one sequence each weight is read from memory for two operations, so a token takes as long as
// reading the weights. Outputs are divided among the threads of a team (gemv.h); every thread
// computes the norms, which are cheap, for itself. The mixers' steps are found by kind
// (mixer_step.h); nothing here depends on a particular mixer.

#include <optional>

#include "copy_step.h"

namespace ys {

std::vector<MixerKind>& mixer_kinds() {
  static std::vector<MixerKind> kinds;
  return kinds;
}

namespace {

template <class Real>
void silu(Real* x, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<Real>::n) {
    const Vec<Real> v = load_part<Real>(x + i, n - i);
    store_part<Real>(x + i, v * sigmoid<Real>(v), n - i);
  }
}

template <class Real>
struct Sequences {
  int64_t n;
  const int64_t* tokens;
  const int64_t* positions;
  Real* const* states;  // of each: the states of all layers, and `pending` of the copy tier
  const ys_copy_ring* const* rings;
  Real* logits;  // n x V
};

template <class Real>
struct ScratchSizes {  // numbers for each sequence, own_copy for each thread
  int64_t trunk, mixer, copy, own_trunk, own_mixer, own_copy;

  explicit ScratchSizes(const ys_decode_model& model)
      : trunk(padded(model.d_model) + padded(d_mlp(model))),
        mixer(0),
        copy(model.copy ? CopyStep<Real>::shared_scratch(*model.copy) : 0),
        own_trunk(padded(model.d_model)),
        own_mixer(0),
        own_copy(model.copy ? CopyStep<Real>::own_scratch(*model.copy, model.head.n_out) : 0) {
    for (int64_t l = 0; l < model.n_layers; l++) {
      const ys_decode_layer& layer = model.layers[l];
      const MixerStep<Real>& step = mixer_step<Real>(layer.mixer_kind);
      mixer = std::max(mixer, step.shared_scratch(layer.mixer));
      own_mixer = std::max(own_mixer, step.own_scratch(layer.mixer));
    }
  }
  static int64_t d_mlp(const ys_decode_model& model) {
    int64_t widest = 0;
    for (int64_t l = 0; l < model.n_layers; l++)
      if (model.layers[l].mlp_gain) widest = std::max(widest, model.layers[l].gate.n_out);
    return widest;
  }
  int64_t total(int64_t n, int64_t threads) const {
    return n * (trunk + mixer + copy) + threads * own(n);
  }
  int64_t own(int64_t n) const {  // of one thread
    return n * (own_trunk + own_mixer) + own_copy;
  }
};

// The work of one thread of the team.
template <class Real>
class Worker {
 public:
  Worker(const ys_decode_model& model, const Sequences<Real>& sequences, Real* scratch, Team team)
      : model_(model), sequences_(sequences), n_(sequences.n), team_(team) {
    const ScratchSizes<Real> sizes(model);
    Scratch<Real> shared{scratch, n_};
    x_ = shared.take(model.d_model);
    hidden_ = shared.take(ScratchSizes<Real>::d_mlp(model));
    mixer_shared_ = shared.next;
    Real *copy_shared = mixer_shared_ + n_ * sizes.mixer,
         *own_base = copy_shared + n_ * sizes.copy + team.thread * sizes.own(n_);
    Scratch<Real> own{own_base, n_};
    normed_ = own.take(model.d_model);
    mixer_own_ = own.next;
    if (model.copy)
      copy_.emplace(*model.copy, sequences.rings, pending(), model.head.n_out, copy_shared,
                    mixer_own_ + n_ * sizes.own_mixer, team);
  }

  void run() {
    embed();
    team_.barrier.wait();
    if (copy_) copy_->read(x_.all(n_), normed_);
    int64_t state_begin = 0;
    for (int64_t l = 0; l < model_.n_layers; l++) {
      const ys_decode_layer& layer = model_.layers[l];
      mix(layer, state_begin);
      if (layer.mlp_gain) mlp(layer);
      state_begin += mixer_step<Real>(layer.mixer_kind).state_size(layer.mixer);
    }
    Vectors<Real> logits;
    for (int64_t b = 0; b < n_; b++) logits.add(sequences_.logits + b * model_.head.n_out);
    const Vectors<Real> hidden = normed(model_.final_gain);
    apply(model_.head, team_.part(model_.head.n_out), hidden, logits);
    if (copy_) copy(hidden);
  }

 private:
  Vectors<Real> pending() const {  // after the states of all layers
    int64_t begin = 0;
    for (int64_t l = 0; l < model_.n_layers; l++) {
      const ys_decode_layer& layer = model_.layers[l];
      begin += mixer_step<Real>(layer.mixer_kind).state_size(layer.mixer);
    }
    Vectors<Real> vectors;
    for (int64_t b = 0; b < n_; b++) vectors.add(sequences_.states[b] + begin);
    return vectors;
  }

  void embed() {
    const Range part = team_.part(model_.d_model);
    const Real* rows = static_cast<const Real*>(model_.embedding);
    for (int64_t b = 0; b < n_; b++)
      std::copy_n(rows + sequences_.tokens[b] * model_.d_model + part.begin, part.size(),
                  x_[b] + part.begin);
  }

  // RMSNorm of the residual stream; the stream itself where there is no gain.
  Vectors<Real> normed(const void* gain) {
    if (!gain) return x_.all(n_);
    for (int64_t b = 0; b < n_; b++) {
      const Vec<Real> squares = add_squares<Real>(Vec<Real>{}, x_[b], model_.d_model);
      const Real scale = rms_scale<Real>(squares, model_.d_model, Real(model_.rms_eps));
      scale_row(x_[b], scale, static_cast<const Real*>(gain), model_.d_model, normed_[b]);
    }
    return normed_.all(n_);
  }

  // x <- x + mixer(norm(x)); without a norm x <- mixer(x).
  void mix(const ys_decode_layer& layer, int64_t state_begin) {
    Vectors<Real> states;
    for (int64_t b = 0; b < n_; b++) states.add(sequences_.states[b] + state_begin);
    mixer_step<Real>(layer.mixer_kind)
        .step(layer.mixer, {n_,
                            sequences_.positions,
                            states,
                            normed(layer.mixer_gain),
                            x_.all(n_),
                            layer.mixer_gain ? Put::ADD : Put::SET,
                            {mixer_shared_, n_},
                            {mixer_own_, n_},
                            team_});
    team_.barrier.wait();
  }

  // x <- x + down (silu(gate x) * (up x))
  void mlp(const ys_decode_layer& layer) {
    const Range part = team_.part(layer.gate.n_out);
    const Vectors<Real> read = normed(layer.mlp_gain), hidden = hidden_.all(n_);
    apply(layer.gate, part, read, hidden);
    for (int64_t b = 0; b < n_; b++) silu(hidden_[b] + part.begin, part.size());
    apply(layer.up, part, read, hidden, Put::MULTIPLY);
    team_.barrier.wait();
    apply(layer.down, team_.part(model_.d_model), hidden, x_.all(n_), Put::ADD);
    team_.barrier.wait();
  }

  void copy(const Vectors<Real>& hidden) {
    copy_->query(hidden);
    team_.barrier.wait();
    copy_->score(sequences_.tokens);
    if (!copy_->scores_whole_sequences()) team_.barrier.wait();
    copy_->mix(sequences_.logits);
  }

  const ys_decode_model& model_;
  const Sequences<Real>& sequences_;
  const int64_t n_;
  const Team team_;
  Rows<Real> x_, hidden_, normed_;
  Real *mixer_shared_, *mixer_own_;
  std::optional<CopyStep<Real>> copy_;
};

template <class Real>
void decode(const ys_decode_model& model, const Sequences<Real>& sequences, Real* scratch,
            int64_t threads) {
  Barrier together{int(threads)}, alone{1};
#pragma omp parallel num_threads(int(threads))
  {
    if (omp_get_num_threads() == threads)
      Worker<Real>(model, sequences, scratch, {together, omp_get_thread_num(), threads}).run();
    else if (omp_get_thread_num() == 0)  // fewer threads than requested: one does it all
      Worker<Real>(model, sequences, scratch, {alone, 0, 1}).run();
  }
}

}  // namespace
}  // namespace ys

extern "C" {

int64_t ys_mixer_kind(const char* name) {
  const auto& kinds = ys::mixer_kinds();
  for (size_t kind = 0; kind < kinds.size(); kind++)
    if (kinds[kind].name == name) return int64_t(kind);
  return -1;
}

int64_t ys_mixer_state_size(int64_t kind, const void* mixer) {
  return ys::mixer_step<float>(kind).state_size(mixer);
}

int64_t ys_decode_scratch(const ys_decode_model* model, int64_t n, int64_t threads) {
  return ys::ScratchSizes<float>(*model).total(n, threads);
}

void ys_decode_f(const ys_decode_model* model, int64_t n, const int64_t* tokens,
                 const int64_t* positions, float* const* states, const ys_copy_ring* const* rings,
                 float* logits, float* scratch, int64_t threads) {
  ys::decode<float>(*model, {n, tokens, positions, states, rings, logits}, scratch, threads);
}

void ys_decode_d(const ys_decode_model* model, int64_t n, const int64_t* tokens,
                 const int64_t* positions, double* const* states, const ys_copy_ring* const* rings,
                 double* logits, double* scratch, int64_t threads) {
  ys::decode<double>(*model, {n, tokens, positions, states, rings, logits}, scratch, threads);
}
}
