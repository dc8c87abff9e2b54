// The decode step of the copy tier; the equation is that of model/copy_tier.py.
//
// A ring keeps the keys of a sequence packed like a weight, a row for each slot, so that the scores
// of all slots are one product. Which token is kept in which slot is the caller's choice.

#pragma once

#include <limits>

#include "exponential.h"
#include "mixer_step.h"
#include "norm.h"

namespace ys {

template <class Real>
Real greatest(const Real* x, int64_t n) {
  constexpr int w = Lanes<Real>::n;
  Vec<Real> most = broadcast(x[0]);
  int64_t i = 0;
  for (; i + w <= n; i += w) most = load<Real>(x + i) > most ? load<Real>(x + i) : most;
  Real found = largest<Real>(most);
  for (; i < n; i++) found = std::max(found, x[i]);
  return found;
}

// The sum of e^(scale (x - most)); where `e` is not null it receives them.
template <class Real>
Real exponentials(const Real* x, int64_t n, Real most, Real scale, Real* e) {
  constexpr int w = Lanes<Real>::n;
  Vec<Real> totals{};
  for (int64_t i = 0; i < n; i += w) {
    Vec<Real> v = exponential((load_part<Real>(x + i, n - i) - most) * scale);
    for (int64_t k = n - i; k < w; k++) v[k] = 0;
    if (e) store_part<Real>(e + i, v, n - i);
    totals += v;
  }
  return sum<Real>(totals);
}

// The work of one thread of the team, for all sequences. Between `read`, `query`, `score` and `mix`
// the team waits, but for `score` and `mix` where `scores_whole_sequences`.
template <class Real>
class CopyStep {
 public:
  static int64_t shared_scratch(const ys_copy_weights& w) {  // numbers for each sequence
    return 2 * padded(w.query.n_out) + padded(1) + padded(w.slots);
  }
  static int64_t own_scratch(const ys_copy_weights& w, int64_t vocab_size) {  // for each thread
    return padded(w.slots) + padded(vocab_size);
  }

  CopyStep(const ys_copy_weights& weights, const ys_copy_ring* const* rings,
           const Vectors<Real>& pending, int64_t vocab_size, Real* shared, Real* own, Team team)
      : w_(weights), rings_(rings), pending_(pending), vocab_size_(vocab_size), team_(team) {
    Scratch<Real> rows{shared, pending.n}, row{own, 1};
    key_ = rows.take(w_.query.n_out);
    query_ = rows.take(w_.query.n_out);
    gate_ = rows.take(1);
    scores_ = rows.take(w_.slots);
    logits_ = row.take(w_.slots).base;
    mass_ = row.take(vocab_size).base;
  }

  // The keys of the tokens that are read: pending + token_key(embedded / rms(embedded)). `scaled`
  // is memory for a row of each sequence.
  void read(const Vectors<Real>& embedded, const Rows<Real>& scaled) {
    const int64_t d = w_.token_key.n_in;
    for (int64_t b = 0; b < pending_.n; b++) {
      const Vec<Real> squares = add_squares<Real>(Vec<Real>{}, embedded.of[b], d);
      const Real scale = rms_scale<Real>(squares, d, Real(1e-12));
      for (int64_t i = 0; i < d; i++) scaled[b][i] = embedded.of[b][i] * scale;
    }
    const Range part = team_.part(w_.token_key.n_out);
    for (int64_t b = 0; b < pending_.n; b++)
      std::copy_n(pending_.of[b] + part.begin, part.size(), key_[b] + part.begin);
    apply(w_.token_key, part, scaled.all(pending_.n), key_.all(pending_.n), Put::ADD);
  }

  // What the hidden states say: queries, gates, and their part of the next tokens' keys.
  void query(const Vectors<Real>& hidden) {
    apply(w_.query, team_.part(w_.query.n_out), hidden, query_.all(pending_.n));
    apply(w_.key, team_.part(w_.key.n_out), hidden, pending_);
    apply(w_.gate, team_.part(1), hidden, gate_.all(pending_.n));
  }

  // Whether a thread mixes the sequences that it scores.
  bool scores_whole_sequences() const { return pending_.n >= team_.threads; }

  // The tokens are kept and scored: all slots of this thread's sequences, or its slots of all.
  void score(const int64_t* tokens) {
    const Range mine = scores_whole_sequences() ? sequences() : Range{0, pending_.n};
    for (int64_t b = mine.begin; b < mine.end; b++) {
      const ys_copy_ring& ring = *rings_[b];
      const Range slots = scores_whole_sequences() ? Range{0, ring.used} : team_.part(ring.used);
      if (slots.begin <= ring.next && ring.next < slots.end) keep(ring, tokens[b], key_[b]);
      const ys_linear keys{ring.keys, nullptr, nullptr, w_.query.n_out, ring.used, 1, YS_REAL};
      Vectors<Real> query, scores;
      query.add(query_[b]);
      scores.add(scores_[b]);
      apply(keys, slots, query, scores);
    }
  }

  // Logits of this thread's sequences become log p of the mixture.
  void mix(Real* logits) {
    const Range mine = sequences();
    if (mine.size()) std::fill_n(mass_, vocab_size_, Real(0));
    for (int64_t b = mine.begin; b < mine.end; b++) {
      const Real head_share = add_masses(*rings_[b], b);
      scale_head(head_share, logits + b * vocab_size_);
      add_copied(*rings_[b], scores_[b], logits + b * vocab_size_);
    }
  }

 private:
  Range sequences() const { return share(pending_.n, 1, team_.threads, team_.thread); }

  void keep(const ys_copy_ring& ring, int64_t token, const Real* key) const {
    constexpr int n = Lanes<Real>::n;
    const int64_t width = w_.query.n_out;
    Real* column = static_cast<Real*>(ring.keys) + ring.next / n * n * width + ring.next % n;
    for (int64_t k = 0; k < width; k++) column[k * n] = key[k];
    ring.tokens[ring.next] = token;
  }

  // mass_v += the softmax of the scores / sqrt(K) with the sentinel over the slots that hold v.
  // Returns the share of the sentinel.
  Real add_masses(const ys_copy_ring& ring, int64_t b) {
    Real* scores = scores_[b];
    const Real scale = 1 / std::sqrt(Real(w_.query.n_out)), sentinel = gate_[b][0] / scale,
               most = std::max(sentinel, greatest(scores, ring.used)),
               rest = std::exp((sentinel - most) * scale),
               part = 1 / (rest + exponentials(scores, ring.used, most, scale, scores));
    for (int64_t i = 0; i < ring.used; i++) mass_[ring.tokens[i]] += scores[i] * part;
    return rest * part;
  }

  // logits = log(share softmax(logits)), finite
  void scale_head(Real share, Real* logits) const {
    constexpr int n = Lanes<Real>::n;
    const Real lowest = std::log(std::numeric_limits<Real>::min());
    const Real most = greatest(logits, vocab_size_),
               total =
                   exponentials(logits, vocab_size_, most, Real(1), static_cast<Real*>(nullptr)),
               shift = std::log(share) - std::log(total) - most;
    for (int64_t i = 0; i < vocab_size_; i += n) {
      const Vec<Real> v = load_part<Real>(logits + i, vocab_size_ - i) + shift;
      store_part<Real>(logits + i, at_least(lowest, v), vocab_size_ - i);
    }
  }

  // logits = log(e^logits + mass) for the tokens in the ring: first all are gathered, so that they
  // are computed side by side. `masses` is workspace; `mass_` becomes 0.
  void add_copied(const ys_copy_ring& ring, Real* masses, Real* logits) {
    constexpr int n = Lanes<Real>::n;
    for (int64_t i = 0; i < ring.used; i++) {
      logits_[i] = logits[ring.tokens[i]];
      masses[i] = mass_[ring.tokens[i]];
      mass_[ring.tokens[i]] = 0;  // a token that comes again counts once
    }
    for (int64_t i = 0; i < ring.used; i += n) {
      const int64_t left = ring.used - i;
      const Vec<Real> head = exponential(load_part<Real>(logits_ + i, left));
      store_part<Real>(logits_ + i, logarithm(head + load_part<Real>(masses + i, left)), left);
    }
    for (int64_t i = 0; i < ring.used; i++) {
      Real& logit = logits[ring.tokens[i]];
      logit = masses[i] == 0 ? logit : logits_[i];
    }
  }

  const ys_copy_weights& w_;
  const ys_copy_ring* const* rings_;
  const Vectors<Real> pending_;
  const int64_t vocab_size_;
  const Team team_;
  Rows<Real> key_, query_, gate_, scores_;
  Real *logits_, *mass_;
};

}  // namespace ys
