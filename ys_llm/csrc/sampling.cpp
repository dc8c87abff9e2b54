// Draws tokens from logits: what inference/sampling.py describes and computes with numpy, without
// sorting a vocabulary. All arithmetic is in double.

#include <limits>

#include "exponential.h"

namespace ys {
namespace {

constexpr double MIN_TEMPERATURE = 1e-9;  // below this, the best token has probability 1
constexpr double MAX_LOGIT = 1e300;  // bound on penalised logits; a difference of two is finite
constexpr double TYPICAL_NUCLEUS =
    64;  // a trained model rarely has more plausible tokens than this

struct Candidate {
  double logit, weight;  // weight: its probability times that of the best one
  int64_t id;
};
bool is_better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// A weight's bucket: the first holds the largest weights, up to 1, and each the weights up to about
// 1.6 % below the largest of it; the last holds all the others.
constexpr int64_t N_BUCKETS = 1024;
int64_t bucket_of(double weight) {
  constexpr int64_t bits_of_1 = 0x3ff0000000000000;
  int64_t bits;
  std::memcpy(&bits, &weight, sizeof bits);
  return std::min(N_BUCKETS - 1, (bits_of_1 - bits) >> 46);
}

// Keeps the fewest best candidates whose measures add up to `target`, in their order. Only the
// bucket in which the sum reaches the target is sorted.
template <class Measure>
void keep_best(std::vector<Candidate>& candidates, std::vector<Candidate>& in_last, double target,
               Measure measure) {
  double sums[N_BUCKETS] = {}, before = 0;
  for (const Candidate& one : candidates) sums[bucket_of(one.weight)] += measure(one);
  int64_t last = 0;
  while (last + 1 < N_BUCKETS && before + sums[last] < target) before += sums[last++];
  in_last.clear();
  for (const Candidate& one : candidates)
    if (bucket_of(one.weight) == last) in_last.push_back(one);
  std::sort(in_last.begin(), in_last.end(), is_better);
  size_t n = 0;
  while (n < in_last.size() && before < target) before += measure(in_last[n++]);
  const auto is_dropped = [&](const Candidate& one) {
    const int64_t bucket = bucket_of(one.weight);
    return bucket > last || (bucket == last && (n == 0 || is_better(in_last[n - 1], one)));
  };
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), is_dropped),
                   candidates.end());
}

struct Drawn {
  int64_t id;  // -1: a logit is NaN or infinite
  double logprob;
};

// Kept by a thread for its next call: new memory would take as long as the draw.
struct Memory {
  std::vector<double> logits, weights;
  std::vector<Candidate> candidates, others;
};

// The draw of a token from the logits of one row.
class Draw {
 public:
  Draw(const ys_sampling& sampling, int64_t vocab_size, Memory& memory)
      : sampling_(sampling),
        memory_(memory),
        n_(vocab_size),
        logits_(memory.logits),
        weights_(memory.weights) {
    logits_.resize(n_);
    weights_.resize(n_);
  }

  template <class Real>
  Drawn operator()(const Real* logits, const int64_t* recent, int64_t n_recent, double uniform) {
    if (!read(logits)) return {-1, 0};
    const double greatest = most(), all = weigh(greatest, 1);
    const int64_t id = draw(recent, n_recent, uniform, greatest, all);
    return {id, double(logits[id]) - greatest - std::log(all)};
  }

 private:
  // False where a logit is NaN or infinite.
  template <class Real>
  bool read(const Real* logits) {
    constexpr int n = Lanes<double>::n;
    for (int64_t i = 0; i < n_; i++) logits_[i] = double(logits[i]);
    Vec<double> differences{};  // NaN where a number is none
    int64_t i = 0;
    for (; i + n <= n_; i += n) differences += load(&logits_[i]) - load(&logits_[i]);
    double no_number = sum<double>(differences);
    for (; i < n_; i++) no_number += logits_[i] - logits_[i];
    return no_number == 0;
  }
  double most() const {
    constexpr int n = Lanes<double>::n;
    Vec<double> greatest = broadcast(logits_[0]);
    int64_t i = 0;
    for (; i + n <= n_; i += n)
      greatest = load(&logits_[i]) > greatest ? load(&logits_[i]) : greatest;
    return std::max(largest<double>(greatest),
                    *std::max_element(logits_.begin() + std::min(i, n_ - 1), logits_.end()));
  }

  int64_t draw(const int64_t* recent, int64_t n_recent, double uniform, double best, double total) {
    const bool is_penalised = sampling_.repetition_penalty != 1 && n_recent;
    if (is_penalised) {
      penalise(recent, n_recent);
      best = most();
    }
    if (sampling_.temperature < MIN_TEMPERATURE)
      return std::find(logits_.begin(), logits_.end(), best) - logits_.begin();
    if (is_penalised || sampling_.temperature != 1) total = weigh(best, sampling_.temperature);
    if (sampling_.top_k > 0 && sampling_.top_k < n_) {
      find_candidates(-1);
      keep_best(memory_.candidates, memory_.others, double(sampling_.top_k),
                [](const Candidate&) { return 1.; });
      keep_nucleus(sum_of_candidates());
      keep_likely();
    } else if (sampling_.top_p < 1) {
      find_nucleus_superset(total);
      keep_nucleus(total);
      keep_likely();
    } else {
      find_candidates(sampling_.min_p);
    }
    return draw_candidate(uniform);
  }

  // The logit z of a token in `recent` becomes z / r if z > 0, else z r.
  void penalise(const int64_t* recent, int64_t n_recent) {
    const double r = sampling_.repetition_penalty;
    std::vector<double> penalised(n_recent);  // first all, because an id may come twice
    for (int64_t i = 0; i < n_recent; i++) {
      const double z = logits_[recent[i]];
      penalised[i] = z > 0 ? z / r : z * r;
    }
    for (int64_t i = 0; i < n_recent; i++) logits_[recent[i]] = penalised[i];
    for (double& z : logits_) z = std::max(-MAX_LOGIT, std::min(MAX_LOGIT, z));
  }

  // weights = exp((logits - best) / temperature); returns their sum.
  double weigh(double best, double temperature) {
    constexpr int n = Lanes<double>::n;
    Vec<double> totals{};
    double rest = 0;
    int64_t i = 0;
    for (; i + n <= n_; i += n) {
      const Vec<double> weight = exponential((load(&logits_[i]) - best) / temperature);
      store(&weights_[i], weight);
      totals += weight;
    }
    for (; i < n_; i++)
      rest += weights_[i] = exponential(broadcast((logits_[i] - best) / temperature))[0];
    return sum<double>(totals) + rest;
  }

  // The tokens with at least this weight, in the order of their ids.
  void find_candidates(double least) {
    memory_.candidates.clear();
    for (int64_t i = 0; i < n_; i++)
      if (weights_[i] >= least) memory_.candidates.push_back({logits_[i], weights_[i], i});
  }
  double sum_of_candidates() const {
    const std::vector<Candidate>& all = memory_.candidates;
    double totals[4] = {};  // with one, each addition would wait for the one before it
    size_t i = 0;
    for (; i + 4 <= all.size(); i += 4)
      for (size_t part = 0; part < 4; part++) totals[part] += all[i + part].weight;
    for (; i < all.size(); i++) totals[0] += all[i].weight;
    return (totals[0] + totals[1]) + (totals[2] + totals[3]);
  }

  // The most probable tokens up to a threshold, so that their sum is above top_p: tokens below
  // (1 - top_p) / 2V sum to less than (1 - top_p) / 2. The first threshold keeps far fewer tokens,
  // and mostly suffices.
  void find_nucleus_superset(double total) {
    const double left = (1 - sampling_.top_p) * total;
    find_candidates(left / TYPICAL_NUCLEUS);
    if (sum_of_candidates() <= total - left / 2) find_candidates(left / double(2 * n_));
  }
  void keep_nucleus(double total) {
    if (sampling_.top_p < 1)
      keep_best(memory_.candidates, memory_.others, sampling_.top_p * total,
                [](const Candidate& c) { return c.weight; });
  }
  void keep_likely() {  // the best weight is 1
    const auto is_unlikely = [&](const Candidate& one) { return one.weight < sampling_.min_p; };
    std::vector<Candidate>& all = memory_.candidates;
    all.erase(std::remove_if(all.begin(), all.end(), is_unlikely), all.end());
  }

  // The first candidate whose cumulative weight exceeds uniform times the sum of all.
  int64_t draw_candidate(double uniform) const {
    const double target = uniform * sum_of_candidates();
    double cumulative = 0;
    int64_t last = 0;  // the product may be rounded up to the sum
    for (const Candidate& one : memory_.candidates) {
      cumulative += one.weight;
      if (cumulative > target) return one.id;
      if (one.weight > 0) last = one.id;
    }
    return last;
  }

  const ys_sampling& sampling_;
  Memory& memory_;
  const int64_t n_;
  std::vector<double>&logits_, &weights_;
};

constexpr int64_t LOGITS_PER_THREAD = 8192;  // that make another thread worthwhile

template <class Real>
void sample(const ys_sampling& sampling, int64_t n, int64_t vocab_size, const Real* logits,
            const int64_t* recent, const int64_t* n_recent, const double* uniforms, int64_t* ids,
            double* logprobs, int64_t threads) {
  threads = std::max<int64_t>(1, std::min({threads, n, n * vocab_size / LOGITS_PER_THREAD}));
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
  {
    thread_local Memory memory;
    Draw draw(sampling, vocab_size, memory);
    const Range mine = share(n, 1, omp_get_num_threads(), omp_get_thread_num());
    for (int64_t i = mine.begin; i < mine.end; i++) {
      const Drawn drawn =
          draw(logits + i * vocab_size, recent + i * YS_PENALTY_WINDOW, n_recent[i], uniforms[i]);
      ids[i] = drawn.id;
      logprobs[i] = drawn.logprob;
    }
  }
}

}  // namespace
}  // namespace ys

extern "C" {

void ys_sample_f(const struct ys_sampling* sampling, int64_t n, int64_t vocab_size,
                 const float* logits, const int64_t* recent, const int64_t* n_recent,
                 const double* uniforms, int64_t* ids, double* logprobs, int64_t threads) {
  ys::sample(*sampling, n, vocab_size, logits, recent, n_recent, uniforms, ids, logprobs, threads);
}

void ys_sample_d(const struct ys_sampling* sampling, int64_t n, int64_t vocab_size,
                 const double* logits, const int64_t* recent, const int64_t* n_recent,
                 const double* uniforms, int64_t* ids, double* logprobs, int64_t threads) {
  ys::sample(*sampling, n, vocab_size, logits, recent, n_recent, uniforms, ids, logprobs, threads);
}
}
