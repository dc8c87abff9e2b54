// Row by row operations between the large matmuls: a residual sum with its RMSNorm, the gate of
// SwiGLU, softmax with cross-entropy, the attention that copies. Each reads and writes every number
// once. Sums are in float, or in double where the numbers are double.

#include <limits>
#include <utility>

#include "exponential.h"
#include "norm.h"

namespace ys {
namespace {

// Prefetches data of some rows later, because a pass reads more streams than the hardware
// prefetcher follows. It halves the time of a pass.
constexpr int64_t PREFETCH_BYTES = 4096;
template <class T>
inline void will_read(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + PREFETCH_BYTES);
}
template <class T>
inline void will_write(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + PREFETCH_BYTES, 1);
}

// Calls body(thread, range of rows) on each thread.
template <class Body>
void split_rows(int64_t rows, int64_t threads, Body body) {
  threads = std::max<int64_t>(1, std::min(threads, rows / 16));
  if (threads == 1) return body(int64_t(0), Range{0, rows});
#pragma omp parallel num_threads(threads)
  body(int64_t(omp_get_thread_num()), share(rows, 1, omp_get_num_threads(), omp_get_thread_num()));
}

template <class X, class A, class Y>
void rms_norm_forward(const X* x, const A* delta, const X* gain, X* residual, Y* y, X* r_rms,
                      int64_t rows, int64_t width, double eps, int64_t threads) {
  using R = RealOf<X>;
  constexpr int n = Lanes<R>::n;
  split_rows(rows, threads, [&](int64_t, Range mine) {
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const X* from = x + row * width;
      Vec<R> squares{};
      if (delta) {
        X* to = residual + row * width;
        for (int64_t i = 0; i < width; i += n) {
          will_read(from + i);
          will_read(delta + row * width + i);
          will_write(to + i);
          Vec<R> v =
              load_part<R>(from + i, width - i) + load_part<R>(delta + row * width + i, width - i);
          store_part<R>(to + i, v, width - i);
          squares += v * v;
        }
        from = to;
      } else {
        squares = add_squares<R>(squares, from, width);
      }
      for (int64_t i = 0; i < width; i += n) will_write(y + row * width + i);
      r_rms[row] = rms_scale(squares, width, R(eps));
      scale_row(from, r_rms[row], gain, width, y + row * width);
    }
  });
}

// With x^ = residual r:  d_residual = d_out + r (dy gain - x^ mean(dy gain x^));  d_gain = sum dy
// x^.
template <class X, class A, class Y>
void rms_norm_backward(const Y* dy, const X* d_out, const X* residual, const X* gain,
                       const X* r_rms, X* d_residual, A* d_delta, X* d_gain, int64_t rows,
                       int64_t width, int64_t threads) {
  using R = RealOf<X>;
  constexpr int n = Lanes<R>::n;
  int64_t padded = (width + n - 1) / n * n;
  std::vector<R> sums(threads * padded, R(0));
  split_rows(rows, threads, [&](int64_t thread, Range mine) {
    R* d_gains = sums.data() + thread * padded;
    for (int64_t row = mine.begin; row < mine.end; row++) {
      int64_t at = row * width;
      R r = r_rms[row];
      Vec<R> dots{};
      for (int64_t i = 0; i < width; i += n) {
        will_read(dy + at + i);
        will_read(residual + at + i);
        Vec<R> dy_x =
            load_part<R>(dy + at + i, width - i) * load_part<R>(residual + at + i, width - i);
        dots += dy_x * load_part<R>(gain + i, width - i);
        store(d_gains + i, load<R>(d_gains + i) + dy_x * r);
      }
      R mean = sum<R>(dots) * r * r * r / R(width);
      for (int64_t i = 0; i < width; i += n) {
        Vec<R> d = load_part<R>(dy + at + i, width - i) * load_part<R>(gain + i, width - i) * r -
                   load_part<R>(residual + at + i, width - i) * mean;
        if (d_out) {
          will_read(d_out + at + i);
          d += load_part<R>(d_out + at + i, width - i);
        }
        will_write(d_residual + at + i);
        store_part<R>(d_residual + at + i, d, width - i);
        if (d_delta) {
          will_write(d_delta + at + i);
          store_part<R>(d_delta + at + i, d, width - i);
        }
      }
    }
  });
  for (int64_t i = 0; i < width; i++) {
    R total = 0;
    for (int64_t thread = 0; thread < threads; thread++) total += sums[thread * padded + i];
    d_gain[i] = total;
  }
}

template <class T>
void gate_forward(const T* gate_up, T* y, int64_t rows, int64_t width, int64_t threads) {
  using R = RealOf<T>;
  constexpr int n = Lanes<R>::n;
  split_rows(rows, threads, [&](int64_t, Range mine) {
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const T *gate = gate_up + row * 2 * width, *up = gate + width;
      for (int64_t i = 0; i < width; i += n) {
        will_read(gate + i);
        will_read(up + i);
        will_write(y + row * width + i);
        Vec<R> g = load_part<R>(gate + i, width - i);
        Vec<R> v = g * sigmoid<R>(g) * load_part<R>(up + i, width - i);
        store_part<R>(y + row * width + i, v, width - i);
      }
    }
  });
}

template <class T>
void gate_backward(const T* gate_up, const T* dy, T* d_gate_up, T* y, int64_t rows, int64_t width,
                   int64_t threads) {
  using R = RealOf<T>;
  constexpr int n = Lanes<R>::n;
  split_rows(rows, threads, [&](int64_t, Range mine) {
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const T *gate = gate_up + row * 2 * width, *up = gate + width;
      T *d_gate = d_gate_up + row * 2 * width, *d_up = d_gate + width;
      for (int64_t i = 0; i < width; i += n) {
        int64_t left = width - i;
        will_read(gate + i);
        will_read(up + i);
        will_read(dy + row * width + i);
        will_write(d_gate + i);
        will_write(d_up + i);
        Vec<R> g = load_part<R>(gate + i, left), u = load_part<R>(up + i, left);
        Vec<R> d = load_part<R>(dy + row * width + i, left), s = sigmoid<R>(g), silu = g * s;
        store_part<R>(y + row * width + i, silu * u, left);
        store_part<R>(d_up + i, d * silu, left);
        store_part<R>(d_gate + i, d * u * (s + silu * (R(1) - s)), left);
      }
    }
  });
}

// Where a row has only a share of the probability of its target; no arrays: it has all of it.
template <class R>
struct Mixture {
  const R *share, *other;
  R *d_share, *d_other;

  // Writes the gradients of a row that gives its target probability p. Returns its loss by the
  // mixture, and what the gradient of its own loss is multiplied by.
  std::pair<R, R> of(int64_t row, R p, R weight) const {
    const R own = share[row] * p, total = std::max(own + other[row], std::numeric_limits<R>::min());
    d_share[row] = -weight * p / total;
    d_other[row] = -weight / total;
    return {-weight * std::log(total), own / total};
  }
};

template <class T, class P>
void cross_entropy(T* logits, const P* bias, const int64_t* targets, const P* weights,
                   const Mixture<P>& mixture, P* losses, P* d_bias, int64_t rows, int64_t width,
                   int64_t threads) {
  using R = RealOf<T>;
  constexpr int n = Lanes<R>::n;
  const int64_t padded = (width + n - 1) / n * n;
  std::vector<R> scratch(threads * 2 * padded, R(0));
  split_rows(rows, threads, [&](int64_t thread, Range mine) {
    R *row_of = scratch.data() + thread * 2 * padded, *sums = row_of + padded;
    for (int64_t row = mine.begin; row < mine.end; row++) {
      T* at = logits + row * width;
      const R weight = weights ? weights[row] : R(1);
      if (weight == 0) {  // not read: it may hold NaN
        losses[row] = 0;
        if (mixture.share) mixture.d_share[row] = mixture.d_other[row] = 0;
        for (int64_t i = 0; i < width; i += n) store_part<R>(at + i, Vec<R>{}, width - i);
        continue;
      }
      const R lowest = -std::numeric_limits<R>::infinity();
      Vec<R> most = broadcast(lowest), totals{};
      for (int64_t i = 0; i < width; i += n) {
        const int64_t left = width - i;
        will_read(at + i);
        Vec<R> v = load_part<R>(at + i, left);
        if (bias) v += load_part<R>(bias + i, left);
        for (int64_t k = left; k < n; k++) v[k] = lowest;
        store(row_of + i, v);
        most = v > most ? v : most;
      }
      const int64_t target = targets[row];
      if (target < 0 || target >= width) {  // no such class: a NaN cannot be overlooked
        losses[row] = std::numeric_limits<R>::quiet_NaN();
        continue;
      }
      R top = largest<R>(most);
      const R picked = row_of[target];
      if (!(top > lowest)) top = 0;  // all NaN or -infinity: the loss becomes NaN
      for (int64_t i = 0; i < width; i += n) {
        Vec<R> e = exponential(load<R>(row_of + i) - top);
        for (int64_t k = width - i; k < n; k++) e[k] = 0;
        store(row_of + i, e);
        totals += e;
      }
      const R total = sum<R>(totals);
      R scale = weight / total;
      losses[row] = weight * (std::log(total) - (picked - top));
      if (mixture.share) {
        const auto [loss, part] = mixture.of(row, row_of[target] / total, weight);
        losses[row] = loss;
        scale *= part;
      }
      row_of[target] -= total;
      for (int64_t i = 0; i < width; i += n) {
        Vec<R> d = load<R>(row_of + i) * scale;
        store_part<R>(at + i, d, width - i);
        if (d_bias) store(sums + i, load<R>(sums + i) + d);
      }
    }
  });
  for (int64_t i = 0; d_bias && i < width; i++)
    for (int64_t thread = 0; thread < threads; thread++)
      d_bias[i] += scratch[(thread * 2 + 1) * padded + i];
}

// Of a tile of queries, the last `queries` of `width` keys: row b, c of scores becomes its softmax
// with sentinel[b, c] over keys first[b, c] to its own, negative where the token is not the target.
template <class T, class R>
void copied_mass(T* scores, const R* sentinel, const int64_t* first, const int32_t* tokens,
                 const int32_t* targets, R* rests, R* masses, int64_t batch, int64_t queries,
                 int64_t width, int64_t threads) {
  constexpr int n = Lanes<R>::n;
  const int64_t padded = (width + n - 1) / n * n;
  std::vector<R> scratch(threads * 2 * padded, R(0));
  split_rows(batch * queries, threads, [&](int64_t thread, Range mine) {
    R *e_of = scratch.data() + thread * 2 * padded, *found_of = e_of + padded;
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const int64_t begin = first[row], seen = width - queries + row % queries + 1 - begin;
      const int32_t *token = tokens + row / queries * width + begin, target = targets[row];
      T* at = scores + row * width;
      std::fill(at, at + begin, T(0));
      at += begin;
      std::fill(at + seen, at + width - begin, T(0));
      for (int64_t i = 0; i < seen; i++) found_of[i] = token[i] == target ? R(1) : R(0);
      Vec<R> most = broadcast(-std::numeric_limits<R>::infinity());
      for (int64_t i = 0; i < seen; i += n) {
        Vec<R> v = load_part<R>(at + i, seen - i);
        for (int64_t k = seen - i; k < n; k++) v[k] = v[0];
        most = v > most ? v : most;
      }
      const R top = std::max(largest<R>(most), sentinel[row]);
      Vec<R> totals{}, hits{};
      for (int64_t i = 0; i < seen; i += n) {
        Vec<R> e = exponential(load_part<R>(at + i, seen - i) - top);
        for (int64_t k = seen - i; k < n; k++) e[k] = found_of[i + k] = 0;
        store(e_of + i, e);
        totals += e;
        hits += e * load<R>(found_of + i);
      }
      const R rest = std::exp(sentinel[row] - top), scale = 1 / (sum<R>(totals) + rest);
      rests[row] = rest * scale;
      masses[row] = sum<R>(hits) * scale;
      for (int64_t i = 0; i < seen; i += n) {
        const Vec<R> sign = load<R>(found_of + i) * R(2) - R(1);
        store_part<R>(at + i, load<R>(e_of + i) * scale * sign, seen - i);
      }
    }
  });
}

// d_scores = |a| ([a > 0] d_mass - common), a row for each query.
template <class T, class R>
void copied_mass_backward(const T* weights, const R* d_mass, const R* common, T* d_scores,
                          int64_t rows, int64_t width, int64_t threads) {
  constexpr int n = Lanes<R>::n;
  split_rows(rows, threads, [&](int64_t, Range mine) {
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const T* a_of = weights + row * width;
      const Vec<R> of_target = broadcast(d_mass[row] - common[row]),
                   of_others = broadcast(common[row]), zero{};
      for (int64_t i = 0; i < width; i += n) {
        const Vec<R> a = load_part<R>(a_of + i, width - i);
        const Vec<R> d = a * (a > zero ? of_target : of_others);
        store_part<R>(d_scores + row * width + i, d, width - i);
      }
    }
  });
}

void add_to(float* total, const bf16* x, int64_t count, int64_t threads) {
  constexpr int64_t n = Lanes<float>::n, row = 64 * n;
  split_rows((count + row - 1) / row, threads, [&](int64_t, Range mine) {
    for (int64_t i = mine.begin * row; i < std::min(count, mine.end * row); i += n) {
      will_read(x + i);
      will_read(total + i);
      store_part<float>(total + i,
                        load_part<float>(total + i, count - i) + load_part<float>(x + i, count - i),
                        count - i);
    }
  });
}

}  // namespace
}  // namespace ys

using ys::bf16;

#define RMS_NORM(suffix, X, A, Y)                                                                 \
  void ys_rms_norm_forward_##suffix(const X* x, const A* delta, const X* gain, X* residual, Y* y, \
                                    X* r_rms, int64_t rows, int64_t width, double eps,            \
                                    int64_t threads) {                                            \
    ys::rms_norm_forward(x, delta, gain, residual, y, r_rms, rows, width, eps, threads);          \
  }                                                                                               \
  void ys_rms_norm_backward_##suffix(const Y* d_y, const X* d_out, const X* residual,             \
                                     const X* gain, const X* r_rms, X* d_residual, A* d_delta,    \
                                     X* d_gain, int64_t rows, int64_t width, int64_t threads) {   \
    ys::rms_norm_backward(d_y, d_out, residual, gain, r_rms, d_residual, d_delta, d_gain, rows,   \
                          width, threads);                                                        \
  }
#define GATE_AND_LOSS(suffix, T, P)                                                                \
  void ys_swiglu_gate_forward_##suffix(const T* gate_up, T* y, int64_t rows, int64_t width,        \
                                       int64_t threads) {                                          \
    ys::gate_forward(gate_up, y, rows, width, threads);                                            \
  }                                                                                                \
  void ys_swiglu_gate_backward_##suffix(const T* gate_up, const T* d_y, T* d_gate_up, T* y,        \
                                        int64_t rows, int64_t width, int64_t threads) {            \
    ys::gate_backward(gate_up, d_y, d_gate_up, y, rows, width, threads);                           \
  }                                                                                                \
  void ys_cross_entropy_##suffix(T* logits, const P* bias, const int64_t* targets,                 \
                                 const P* weights, const P* share, const P* other, P* losses,      \
                                 P* d_share, P* d_other, P* d_bias, int64_t rows, int64_t width,   \
                                 int64_t threads) {                                                \
    ys::cross_entropy(logits, bias, targets, weights, {share, other, d_share, d_other}, losses,    \
                      d_bias, rows, width, threads);                                               \
  }                                                                                                \
  void ys_copied_mass_##suffix(T* scores, const P* sentinel, const int64_t* first,                 \
                               const int32_t* tokens, const int32_t* targets, P* rests, P* masses, \
                               int64_t batch, int64_t queries, int64_t width, int64_t threads) {   \
    ys::copied_mass(scores, sentinel, first, tokens, targets, rests, masses, batch, queries,       \
                    width, threads);                                                               \
  }                                                                                                \
  void ys_copied_mass_backward_##suffix(const T* weights, const P* d_mass, const P* common,        \
                                        T* d_scores, int64_t rows, int64_t width,                  \
                                        int64_t threads) {                                         \
    ys::copied_mass_backward(weights, d_mass, common, d_scores, rows, width, threads);             \
  }

extern "C" {
RMS_NORM(ddd, double, double, double)
RMS_NORM(fff, float, float, float)
RMS_NORM(ffb, float, float, bf16)
RMS_NORM(fbf, float, bf16, float)
RMS_NORM(fbb, float, bf16, bf16)
GATE_AND_LOSS(d, double, double)
GATE_AND_LOSS(f, float, float)
GATE_AND_LOSS(b, bf16, float)

void ys_add_to_fb(float* total, const bf16* x, int64_t count, int64_t threads) {
  ys::add_to(total, x, count, threads);
}
}
