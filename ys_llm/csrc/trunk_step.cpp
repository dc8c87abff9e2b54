// One token for a whole model: embedding, blocks, norms, head, for any number of texts at once.
//
// At one text each weight is read from memory for two operations, so a token takes as long as
// reading them does: rows of the weights are dealt to threads, each row is one dot product with the
// vector of every text, and what is only as wide as a state is computed by each thread for itself.
// The order of a sum depends on neither threads nor texts: with AVX-512 each text is continued with
// the same bits as alone.

#include "common.h"

namespace ys {

constexpr int64_t MOST_TEXTS = 64;  // of one call

// y = W x + bias, rows of W being outputs: n_out x n_in, of which row r sees the part of x that
// belongs to its group (heads; 1 group sees all). `kind`: 0 Real; 1 bf16; 2 int8 times scales[r].
struct Map {
  const void* weight;
  const void* scales;
  const void* bias;
  int64_t n_in, n_out, n_groups, kind;
};
struct Norm {
  const void* gain;
  const void* bias;
};
// held <- LN(held controller + y influencer) shaper, after steps t with t mod every == every - 1.
struct Tier {
  Map controller, influencer, shaper;
  Norm norm;
  int64_t every, width;  // every: 0 where there is no such tier
};
struct Layer {
  const void* mixer_gain;  // of the RMSNorm before the mixer; null: no norm, no residual
  const void* mlp_gain;    // null: no MLP
  const void* entry;       // null: 1
  Map in, controller, shaper, out;  // shaper.weight null: what summaries read is h itself
  Map gate, up, down;
  Norm norm;
  Tier tiers[2];  // local, global
};
struct Model {
  const void* embedding;
  const void* final_gain;
  const Layer* layers;
  Map head;
  int64_t n_layers, d_model, d_state, d_mlp, d_summary, n_heads;
  double rms_eps, norm_eps;
};

// Sums are held in vectors of the processor's own width: gcc keeps wider ones in memory, not in
// registers, which takes up to ten times as long as reading the weights. HELD: how many sums at once.
#if defined(__AVX512F__)
constexpr int BYTES = 64, HELD = 16;
#elif defined(__AVX__)
constexpr int BYTES = 32, HELD = 8;
#else
constexpr int BYTES = 16, HELD = 8;
#endif
constexpr int TEXTS = HELD < 16 ? 2 : 4;  // side by side
template <class Real> struct Own;
template <> struct Own<float> { typedef float V __attribute__((vector_size(BYTES))); };
template <> struct Own<double> { typedef double V __attribute__((vector_size(BYTES))); };
template <class Real> using Sums = typename Own<Real>::V;
template <class Real> constexpr int LANES = BYTES / int(sizeof(Real));

inline Sums<float> load_some(const float* p) {
  Sums<float> v;
  std::memcpy(&v, p, BYTES);
  return v;
}
inline Sums<double> load_some(const double* p) {
  Sums<double> v;
  std::memcpy(&v, p, BYTES);
  return v;
}
#if defined(__AVX512F__)
inline Sums<float> load_some(const int8_t* p) {
  return (Sums<float>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Sums<float> load_some(const bf16* p) {
  return (Sums<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
}
#elif defined(__AVX2__)
inline Sums<float> load_some(const int8_t* p) {
  return (Sums<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Sums<float> load_some(const bf16* p) {
  return (Sums<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
}
#else
typedef int32_t Wide __attribute__((vector_size(BYTES)));
inline Sums<float> load_some(const int8_t* p) {
  typedef int8_t Narrow __attribute__((vector_size(BYTES / 4)));
  Narrow narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return __builtin_convertvector(__builtin_convertvector(narrow, Wide), Sums<float>);
}
inline Sums<float> load_some(const bf16* p) {
  typedef bf16 Narrow __attribute__((vector_size(BYTES / 2)));
  Narrow narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return (Sums<float>)(__builtin_convertvector(narrow, Wide) << 16);
}
#endif

// The first n numbers, fewer than lanes, and zeros.
template <class Real, class W> inline Sums<Real> load_first(const W* p, int64_t n) {
  W padded[LANES<Real>] = {};
  std::memcpy(padded, p, size_t(n) * sizeof(W));
  return load_some(padded);
}

// Upper half onto lower half, until one number is left.
template <int bytes, class Real, class Whole> inline Real folded(Whole v) {
  if constexpr (bytes == sizeof(Real)) {
    return v[0];
  } else if constexpr (bytes == 2 * sizeof(Real)) {
    return v[0] + v[1];
  } else {
    typedef Real Half __attribute__((vector_size(bytes / 2)));
    Half low, high;
    std::memcpy(&low, &v, bytes / 2);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + bytes / 2, bytes / 2);
    return folded<bytes / 2, Real>(Half(low + high));
  }
}
inline float sum_of(Sums<float> v) { return folded<BYTES, float>(v); }
inline double sum_of(Sums<double> v) { return folded<BYTES, double>(v); }

// The sums of eight vectors, each added up in the order of `sum_of`, at a third of its cost.
template <class Real> inline void sum_eight(const Sums<Real>* v, Real* sums) {
  for (int i = 0; i < 8; i++) sums[i] = sum_of(v[i]);
}
#if defined(__AVX512F__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
template <> inline void sum_eight<float>(const Sums<float>* v, float* sums) {
  Sums<float> a[4], b[2];
  for (int i = 0; i < 4; i++)  // of vectors i and i + 4: 8 partial sums each
    a[i] = __builtin_shufflevector(v[i], v[i + 4], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(v[i], v[i + 4], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)  // of i, i + 2, i + 4, i + 6: 4 each
    b[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           __builtin_shufflevector(a[i], a[i + 2], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  Sums<float> c = __builtin_shufflevector(b[0], b[1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                 __builtin_shufflevector(b[0], b[1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  for (int i = 0; i < 8; i++) sums[i] = c[2 * i] + c[2 * i + 1];
}
#endif
#endif

// R rows of W, `n` numbers each, with the vectors of B texts.
template <int R, int B, class Real, class W>
inline void dot_block(const W* w, int64_t n, const Real* const* x, Real (*dots)[B]) {
  constexpr int L = LANES<Real>;
  Sums<Real> sums[R][B] = {};
  int64_t i = 0;
  const char* next = reinterpret_cast<const char*>(w + R * n);  // the rows after these, which lie there
  for (; i + L <= n; i += L) {
    for (size_t line = 0; sizeof(W) < 4 && line < R * L * sizeof(W); line += 64) __builtin_prefetch(next + line);
    next += R * L * sizeof(W);
    Sums<Real> part[B];
    for (int b = 0; b < B; b++) part[b] = load_some(x[b] + i);
    for (int r = 0; r < R; r++) {
      Sums<Real> row = load_some(w + r * n + i);
      for (int b = 0; b < B; b++) sums[r][b] += row * part[b];
    }
  }
  if (i < n)
    for (int r = 0; r < R; r++) {
      Sums<Real> row = load_first<Real>(w + r * n + i, n - i);
      for (int b = 0; b < B; b++) sums[r][b] += row * load_first<Real>(x[b] + i, n - i);
    }
  int done = 0;
  for (; done + 8 <= R * B; done += 8) sum_eight<Real>(&sums[0][0] + done, &dots[0][0] + done);
  for (; done < R * B; done++) (&dots[0][0])[done] = sum_of((&sums[0][0])[done]);
}

// A list of vectors: one of each text, or of some.
template <class Real> struct List {
  Real* of[MOST_TEXTS];
  int64_t n = 0;
  void add(Real* vector) { of[n++] = vector; }
};
enum Put { SET, ADD, MULTIPLY };  // what is done with a result

template <int R, int B, class Real, class W>
inline void rows_block(const Map& map, int64_t row, Real* const* x, Real* const* out, Put put) {
  const Real* seen[B];
  const int64_t per_group = map.n_out / map.n_groups;
  for (int b = 0; b < B; b++) seen[b] = x[b] + row / per_group * map.n_in;
  Real dots[R][B];
  dot_block<R, B>(static_cast<const W*>(map.weight) + row * map.n_in, map.n_in, seen, dots);
  const Real* scales = static_cast<const Real*>(map.scales);
  const Real* bias = static_cast<const Real*>(map.bias);
  for (int r = 0; r < R; r++)
    for (int b = 0; b < B; b++) {
      Real y = scales ? dots[r][b] * scales[row + r] : dots[r][b];
      if (bias) y += bias[row + r];
      Real& to = out[b][row + r];
      to = put == SET ? y : put == ADD ? to + y : to * y;
    }
}

template <int B, class Real, class W>
void rows_of(const Map& map, Range rows, Real* const* x, Real* const* out, Put put) {
  constexpr int R = HELD / B < 8 ? HELD / B : 8;
  const int64_t per_group = map.n_out / map.n_groups;
  int64_t row = rows.begin;
  while (row < rows.end) {
    if (row + R <= rows.end && row / per_group == (row + R - 1) / per_group) {
      rows_block<R, B, Real, W>(map, row, x, out, put);
      row += R;
    } else {
      rows_block<1, B, Real, W>(map, row++, x, out, put);
    }
  }
}

template <class Real, class W>
void texts_of(const Map& map, Range rows, const List<Real>& x, const List<Real>& out, Put put) {
  // A few rows at a time for all texts, so that they are read from memory once.
  const int64_t step = x.n <= TEXTS ? rows.size() : 16;
  for (int64_t begin = rows.begin; begin < rows.end; begin += step) {
    const Range some{begin, std::min(rows.end, begin + step)};
    int64_t b = 0;
    for (; b + TEXTS <= x.n; b += TEXTS) rows_of<TEXTS, Real, W>(map, some, x.of + b, out.of + b, put);
    for (; b < x.n; b++) rows_of<1, Real, W>(map, some, x.of + b, out.of + b, put);
  }
}

// These rows of W x, for each x of a list, into a list as long.
inline void apply(const Map& map, Range rows, const List<double>& x, const List<double>& out, Put put = SET) {
  texts_of<double, double>(map, rows, x, out, put);
}
inline void apply(const Map& map, Range rows, const List<float>& x, const List<float>& out, Put put = SET) {
  if (map.kind == 2) texts_of<float, int8_t>(map, rows, x, out, put);
  else if (map.kind == 1) texts_of<float, bf16>(map, rows, x, out, put);
  else texts_of<float, float>(map, rows, x, out, put);
}

template <class Real, class Of> inline Real total(int64_t n, Of of) {
  constexpr int L = LANES<Real>;
  Sums<Real> sums{};
  int64_t i = 0;
  for (; i + L <= n; i += L) sums += of(i, L);
  if (i < n) sums += of(i, n - i);
  return sum_of(sums);
}
template <class Real> inline Sums<Real> part_of(const Real* x, int64_t i, int64_t n) {
  return n == LANES<Real> ? load_some(x + i) : load_first<Real>(x + i, n);
}

template <class Real> void rms_norm(const Real* x, const Real* gain, int64_t n, Real eps, Real* y) {
  const Real squares = total<Real>(n, [&](int64_t i, int64_t some) {
    Sums<Real> v = part_of(x, i, some);
    return v * v;
  });
  const Real scale = 1 / std::sqrt(squares / Real(n) + eps);
  for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * gain[i];
}

// Statistics over each head's share of the width.
template <class Real>
void layer_norm(const Real* x, const Norm& norm, int64_t n, int64_t n_heads, Real eps, Real* y) {
  const Real* gain = static_cast<const Real*>(norm.gain);
  const Real* bias = static_cast<const Real*>(norm.bias);
  const int64_t width = n / n_heads;
  for (int64_t first = 0; first < n; first += width) {
    const Real* head = x + first;
    const Real mean = total<Real>(width, [&](int64_t i, int64_t some) { return part_of(head, i, some); }) / Real(width);
    const Real squares = total<Real>(width, [&](int64_t i, int64_t some) {
      Sums<Real> v = part_of(head, i, some) - mean;
      for (int64_t lane = some; lane < LANES<Real>; lane++) v[lane] = 0;
      return v * v;
    });
    const Real rstd = 1 / std::sqrt(squares / Real(width) + eps);
    for (int64_t i = first; i < first + width; i++) y[i] = (x[i] - mean) * rstd * gain[i] + bias[i];
  }
}

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// n vectors one after the other, each at an address that vectors like.
template <class Real> struct Rows {
  Real* base = nullptr;
  int64_t stride = 0;
  Real* operator[](int64_t i) const { return base + i * stride; }
};

// Numbers all threads share, and numbers of each thread; `size` of them in all.
template <class Real> struct Scratch {
  Rows<Real> x, pre, y, hidden, tier_pre[2];
  Rows<Real> normed, h, tier_normed;

  static int64_t shared_size(const Model& m) {
    return padded(m.d_model) + 2 * padded(m.d_state) + padded(m.d_mlp) + 2 * padded(m.d_summary);
  }
  static int64_t own_size(const Model& m) {
    return padded(m.d_model) + padded(m.d_state) + padded(m.d_summary);
  }
  Scratch(const Model& m, Real* base, int64_t n, int64_t thread) {
    auto take = [&](Rows<Real>& rows, int64_t width) {
      rows = {base, padded(width)};
      base += n * padded(width);
    };
    take(x, m.d_model);
    take(pre, m.d_state);
    take(y, m.d_state);
    take(hidden, m.d_mlp);
    take(tier_pre[0], m.d_summary);
    take(tier_pre[1], m.d_summary);
    base += thread * n * own_size(m);
    take(normed, m.d_model);
    take(h, m.d_state);
    take(tier_normed, m.d_summary);
  }
};

template <class Real> struct Texts {
  int64_t n;
  const int64_t* tokens;
  const int64_t* positions;
  Real* const* states;  // of each: layers x (main, local, global) x S
  Real* logits;         // n x V
};

template <class Real> class Worker {
 public:
  Worker(const Model& model, const Texts<Real>& texts, Real* scratch, Barrier& barrier, int64_t thread, int64_t threads)
      : m_(model), texts_(texts), s_(model, scratch, texts.n, thread), barrier_(barrier), thread_(thread), threads_(threads) {}

  void run() {
    const Range mine = my(m_.d_model);
    for (int64_t b = 0; b < texts_.n; b++)
      std::copy_n(real(m_.embedding) + texts_.tokens[b] * m_.d_model + mine.begin, mine.size(),
                  s_.x[b] + mine.begin);
    barrier_.wait();
    for (int64_t l = 0; l < m_.n_layers; l++) block(m_.layers[l], l);
    List<Real> logits;
    for (int64_t b = 0; b < texts_.n; b++) logits.add(texts_.logits + b * m_.head.n_out);
    apply(m_.head, my(m_.head.n_out), normed(m_.final_gain), logits);
  }

 private:
  static const Real* real(const void* p) { return static_cast<const Real*>(p); }
  Range my(int64_t n) const { return share(n, 16, threads_, thread_); }
  Real* state(int64_t b, int64_t layer, int64_t which) const {
    return texts_.states[b] + (3 * layer + which) * m_.d_state;
  }
  bool fires(const Tier& tier, int64_t b) const {
    return tier.every && texts_.positions[b] % tier.every == tier.every - 1;
  }
  bool any_fires(const Layer& layer) const {
    for (int64_t b = 0; b < texts_.n; b++)
      if (fires(layer.tiers[0], b) || fires(layer.tiers[1], b)) return true;
    return false;
  }

  List<Real> all(const Rows<Real>& rows) const {
    List<Real> list;
    for (int64_t b = 0; b < texts_.n; b++) list.add(rows[b]);
    return list;
  }

  // RMSNorm of the stream; the stream itself where there is no gain.
  List<Real> normed(const void* gain) {
    if (!gain) return all(s_.x);
    for (int64_t b = 0; b < texts_.n; b++) rms_norm(s_.x[b], real(gain), m_.d_model, Real(m_.rms_eps), s_.normed[b]);
    return all(s_.normed);
  }

  void block(const Layer& layer, int64_t l) {
    before_norm(layer, l);
    barrier_.wait();
    const bool summarises = any_fires(layer);
    after_norm(layer, l, summarises);
    barrier_.wait();
    if (summarises) renew(layer, l);
    if (layer.mlp_gain) mlp(layer);
  }

  // pre = in x + h controller + entry (L + G)
  void before_norm(const Layer& layer, int64_t l) {
    const Range mine = my(m_.d_state);
    List<Real> states, pre = all(s_.pre);
    for (int64_t b = 0; b < texts_.n; b++) states.add(state(b, l, 0));
    apply(layer.in, mine, normed(layer.mixer_gain), pre);
    apply(layer.controller, mine, states, pre, ADD);
    const Real* entry = real(layer.entry);
    for (int64_t b = 0; b < texts_.n; b++) {
      const Real *local = state(b, l, 1), *global = state(b, l, 2);
      for (int64_t i = mine.begin; i < mine.end; i++) s_.pre[b][i] += (entry ? entry[i] : 1) * (local[i] + global[i]);
    }
  }

  // h = LN(pre); x += out h; and what the summaries that fire are made of.
  void after_norm(const Layer& layer, int64_t l, bool summarises) {
    const Range mine = my(m_.d_state);
    for (int64_t b = 0; b < texts_.n; b++) {
      layer_norm(s_.pre[b], layer.norm, m_.d_state, m_.n_heads, Real(m_.norm_eps), s_.h[b]);
      std::copy_n(s_.h[b] + mine.begin, mine.size(), state(b, l, 0) + mine.begin);
    }
    const List<Real> h = all(s_.h), x = all(s_.x);
    apply(layer.out, my(m_.d_model), h, x, layer.mixer_gain ? ADD : SET);
    if (!summarises) return;
    if (layer.shaper.weight) {
      apply(layer.shaper, mine, h, all(s_.y));
      barrier_.wait();
    }
    for (int which : {0, 1}) gather(layer, l, which);
  }

  void gather(const Layer& layer, int64_t l, int which) {
    const Tier& tier = layer.tiers[which];
    List<Real> held, y, pre;
    for (int64_t b = 0; b < texts_.n; b++)
      if (fires(tier, b)) {
        held.add(state(b, l, 1 + which));
        y.add(layer.shaper.weight ? s_.y[b] : s_.h[b]);
        pre.add(s_.tier_pre[which][b]);
      }
    apply(tier.controller, my(tier.width), held, pre);
    apply(tier.influencer, my(tier.width), y, pre, ADD);
  }

  // L, G <- LN(...) shaper, for the texts whose clock says so; they are read from the next token on.
  void renew(const Layer& layer, int64_t l) {
    for (int which : {0, 1}) {
      const Tier& tier = layer.tiers[which];
      List<Real> read, held;
      for (int64_t b = 0; b < texts_.n; b++)
        if (fires(tier, b)) {
          layer_norm(s_.tier_pre[which][b], tier.norm, tier.width, m_.n_heads, Real(m_.norm_eps), s_.tier_normed[b]);
          read.add(s_.tier_normed[b]);
          held.add(state(b, l, 1 + which));
        }
      apply(tier.shaper, my(m_.d_state), read, held);
    }
  }

  // x += down (silu(gate x) * (up x))
  void mlp(const Layer& layer) {
    const Range mine = my(m_.d_mlp);
    const List<Real> read = normed(layer.mlp_gain), hidden = all(s_.hidden), x = all(s_.x);
    apply(layer.gate, mine, read, hidden);
    for (int64_t b = 0; b < texts_.n; b++)
      for (int64_t i = mine.begin; i < mine.end; i++) s_.hidden[b][i] /= 1 + std::exp(-s_.hidden[b][i]);
    apply(layer.up, mine, read, hidden, MULTIPLY);
    barrier_.wait();
    apply(layer.down, my(m_.d_model), hidden, x, ADD);
    barrier_.wait();
  }

  const Model& m_;
  const Texts<Real>& texts_;
  const Scratch<Real> s_;
  Barrier& barrier_;
  const int64_t thread_, threads_;
};

template <class Real>
void step(const Model& model, const Texts<Real>& texts, Real* scratch, int64_t threads) {
  Barrier all{int(threads)}, alone{1};
#pragma omp parallel num_threads(int(threads))
  {
    const bool together = omp_get_num_threads() == threads;
    if (together)
      Worker<Real>(model, texts, scratch, all, omp_get_thread_num(), threads).run();
    else if (omp_get_thread_num() == 0)
      Worker<Real>(model, texts, scratch, alone, 0, 1).run();
  }
}

}  // namespace ys

extern "C" {

int64_t ys_decode_most_texts() { return ys::MOST_TEXTS; }

// Numbers of scratch that a step of n texts takes on this many threads.
int64_t ys_decode_scratch(const ys::Model* model, int64_t n, int64_t threads) {
  return n * (ys::Scratch<float>::shared_size(*model) + threads * ys::Scratch<float>::own_size(*model));
}

void ys_decode_f32(const ys::Model* model, int64_t n, const int64_t* tokens, const int64_t* positions,
                   float* const* states, float* logits, float* scratch, int64_t threads) {
  ys::step<float>(*model, {n, tokens, positions, states, logits}, scratch, threads);
}

void ys_decode_f64(const ys::Model* model, int64_t n, const int64_t* tokens, const int64_t* positions,
                   double* const* states, double* logits, double* scratch, int64_t threads) {
  ys::step<double>(*model, {n, tokens, positions, states, logits}, scratch, threads);
}
}
