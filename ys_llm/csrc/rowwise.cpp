// What happens row by row between the large products: a residual sum with its RMSNorm, the gate of
// SwiGLU, softmax with cross-entropy. Each reads and writes every number once, on the way through
// the cache. Sums are taken in float, or in double where the numbers are double.

#include "common.h"

#include <limits>

namespace ys {
namespace {

template <class T> struct RealOf { typedef float type; };
template <> struct RealOf<double> { typedef double type; };
template <class T> using Real = typename RealOf<T>::type;

// A vector of the next numbers of a row, with zeros where fewer are left.
template <class R, class T> inline Vec<R> take(const T* p, int64_t left) {
  if (left >= Lanes<R>::n) return load<R>(p);
  Vec<R> v{};
  for (int64_t i = 0; i < left; i++) v[i] = load_one(p + i);
  return v;
}
template <class R, class T> inline void put(T* p, Vec<R> v, int64_t left) {
  if (left >= Lanes<R>::n) return store(p, v);
  for (int64_t i = 0; i < left; i++) store_one(p + i, v[i]);
}

// Asks for what is needed some rows later: these streams are too many, and their pages too small,
// for the processor to see them coming. Reading ahead halves the time of a pass.
constexpr int64_t kAhead = 4096;  // bytes
template <class T> inline void will_read(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead);
}
template <class T> inline void will_write(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead, 1);
}

// The greater of both; NaN where v is NaN.
inline Vec<float> at_least(float lowest, Vec<float> v) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps(_mm512_set1_ps(lowest), (__m512)v);
#else
  return v < lowest ? fill(lowest) : v;
#endif
}
inline Vec<double> at_least(double lowest, Vec<double> v) { return v < lowest ? fill(lowest) : v; }

// e^x. In float: x = n ln 2 + r, and a polynomial for e^r (Cephes), wrong by 2e-7 of it at most.
// Below -87 it is as good as 0; nobody asks above 87.
inline Vec<float> exponential(Vec<float> x) {
  const Vec<float> shift = fill(12582912.f);  // 1.5 * 2^23: the sum's last bits are the integer
  x = at_least(-87.f, x);
  Vec<float> shifted = x * 1.44269504f + shift, n = shifted - shift;
  Vec<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec<float> p = fill(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  typedef int32_t I32 __attribute__((vector_size(64)));
  I32 bits, power;
  std::memcpy(&bits, &p, 64);
  std::memcpy(&power, &shifted, 64);
  bits += power << 23;
  std::memcpy(&r, &bits, 64);
  return x == x ? r : x;
#endif
}
inline Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < Lanes<double>::n; i++) x[i] = std::exp(x[i]);
  return x;
}

inline Vec<float> inverse(Vec<float> x) {
#if defined(__AVX512F__)
  Vec<float> guess = (Vec<float>)_mm512_rcp14_ps((__m512)x);  // 14 bits; one Newton step: 23
  return guess * (2.f - x * guess);
#else
  return 1.f / x;
#endif
}
inline Vec<double> inverse(Vec<double> x) { return 1. / x; }

// 1 / (1 + e^-x); its smallest value is e^-80.
template <class R> inline Vec<R> sigmoid(Vec<R> x) {
  return inverse(R(1) + exponential(-at_least(R(-80), x)));
}

template <class R> inline R largest(Vec<R> v) {
  R most = v[0];
  for (int i = 1; i < Lanes<R>::n; i++) most = v[i] > most ? v[i] : most;
  return most;
}

// body(thread, range of rows), on all threads.
template <class Body> void deal(int64_t rows, int64_t threads, Body body) {
  threads = std::max<int64_t>(1, std::min(threads, rows / 16));
  if (threads == 1) return body(int64_t(0), Range{0, rows});
#pragma omp parallel num_threads(threads)
  body(int64_t(omp_get_thread_num()), share(rows, 1, omp_get_num_threads(), omp_get_thread_num()));
}

// stream = x + added;  y = stream / rms(stream) * gain. Without `added` the stream is x.
template <class X, class A, class Y>
void norm_forward(const X* x, const A* added, const X* gain, X* stream, Y* y, X* r_rms,
                  int64_t rows, int64_t width, double eps, int64_t threads) {
  typedef Real<X> R;
  constexpr int n = Lanes<R>::n;
  deal(rows, threads, [&](int64_t, Range mine) {
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const X* from = x + row * width;
      Vec<R> squares{};
      if (added) {
        X* to = stream + row * width;
        for (int64_t i = 0; i < width; i += n) {
          will_read(from + i);
          will_read(added + row * width + i);
          will_write(to + i);
          Vec<R> v = take<R>(from + i, width - i) + take<R>(added + row * width + i, width - i);
          put<R>(to + i, v, width - i);
          squares += v * v;
        }
        from = to;
      } else {
        for (int64_t i = 0; i < width; i += n) {
          Vec<R> v = take<R>(from + i, width - i);
          squares += v * v;
        }
      }
      R r = R(1) / std::sqrt(sum<R>(squares) / R(width) + R(eps));
      r_rms[row] = r;
      for (int64_t i = 0; i < width; i += n) {
        will_write(y + row * width + i);
        Vec<R> v = take<R>(from + i, width - i) * r * take<R>(gain + i, width - i);
        put<R>(y + row * width + i, v, width - i);
      }
    }
  });
}

// With x^ = stream r:  d_stream = d_out + r (dy gain - x^ mean(dy gain x^));  d_gain = sum dy x^.
// `d_out`, what comes down the stream, may be none; `d_added` too, which is d_stream rounded.
template <class X, class A, class Y>
void norm_backward(const Y* dy, const X* d_out, const X* stream, const X* gain, const X* r_rms,
                   X* d_stream, A* d_added, X* d_gain, int64_t rows, int64_t width,
                   int64_t threads) {
  typedef Real<X> R;
  constexpr int n = Lanes<R>::n;
  int64_t padded = (width + n - 1) / n * n;
  std::vector<R> sums(threads * padded, R(0));
  deal(rows, threads, [&](int64_t thread, Range mine) {
    R* d_gains = sums.data() + thread * padded;
    for (int64_t row = mine.begin; row < mine.end; row++) {
      int64_t at = row * width;
      R r = r_rms[row];
      Vec<R> dots{};
      for (int64_t i = 0; i < width; i += n) {
        will_read(dy + at + i);
        will_read(stream + at + i);
        Vec<R> product = take<R>(dy + at + i, width - i) * take<R>(stream + at + i, width - i);
        dots += product * take<R>(gain + i, width - i);
        store(d_gains + i, load<R>(d_gains + i) + product * r);
      }
      R mean = sum<R>(dots) * r * r * r / R(width);
      for (int64_t i = 0; i < width; i += n) {
        Vec<R> d = take<R>(dy + at + i, width - i) * take<R>(gain + i, width - i) * r -
                   take<R>(stream + at + i, width - i) * mean;
        if (d_out) {
          will_read(d_out + at + i);
          d += take<R>(d_out + at + i, width - i);
        }
        will_write(d_stream + at + i);
        put<R>(d_stream + at + i, d, width - i);
        if (d_added) {
          will_write(d_added + at + i);
          put<R>(d_added + at + i, d, width - i);
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

// y = silu(gate) up, where a row of `both` is gate, then up.
template <class T>
void gate_forward(const T* both, T* y, int64_t rows, int64_t width, int64_t threads) {
  typedef Real<T> R;
  constexpr int n = Lanes<R>::n;
  deal(rows, threads, [&](int64_t, Range mine) {
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const T *gate = both + row * 2 * width, *up = gate + width;
      for (int64_t i = 0; i < width; i += n) {
        will_read(gate + i);
        will_read(up + i);
        will_write(y + row * width + i);
        Vec<R> g = take<R>(gate + i, width - i);
        Vec<R> v = g * sigmoid<R>(g) * take<R>(up + i, width - i);
        put<R>(y + row * width + i, v, width - i);
      }
    }
  });
}

// Gradients of gate and up from that of y, and y once more, which nobody has kept.
template <class T>
void gate_backward(const T* both, const T* dy, T* d_both, T* y, int64_t rows, int64_t width,
                   int64_t threads) {
  typedef Real<T> R;
  constexpr int n = Lanes<R>::n;
  deal(rows, threads, [&](int64_t, Range mine) {
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const T *gate = both + row * 2 * width, *up = gate + width;
      T *d_gate = d_both + row * 2 * width, *d_up = d_gate + width;
      for (int64_t i = 0; i < width; i += n) {
        int64_t left = width - i;
        will_read(gate + i);
        will_read(up + i);
        will_read(dy + row * width + i);
        will_write(d_gate + i);
        will_write(d_up + i);
        Vec<R> g = take<R>(gate + i, left), u = take<R>(up + i, left);
        Vec<R> d = take<R>(dy + row * width + i, left), s = sigmoid<R>(g), silu = g * s;
        put<R>(y + row * width + i, silu * u, left);
        put<R>(d_up + i, d * silu, left);
        put<R>(d_gate + i, d * u * (s + silu * (R(1) - s)), left);
      }
    }
  });
}

// losses = logsumexp(logits + bias) - (logits + bias)[target]; the logits become
// softmax - onehot(target), and d_bias takes its sum over the rows; both bias and d_bias or none.
template <class T, class P>
void cross_entropy(T* logits, const P* bias, const int64_t* targets, P* losses, P* d_bias,
                   int64_t rows, int64_t width, int64_t threads) {
  typedef Real<T> R;
  constexpr int n = Lanes<R>::n;
  int64_t padded = (width + n - 1) / n * n;
  std::vector<R> scratch(threads * 2 * padded, R(0));
  deal(rows, threads, [&](int64_t thread, Range mine) {
    R *row_of = scratch.data() + thread * 2 * padded, *sums = row_of + padded;
    for (int64_t row = mine.begin; row < mine.end; row++) {
      T* at = logits + row * width;
      const R lowest = -std::numeric_limits<R>::infinity();
      Vec<R> most = fill(lowest), totals{};
      for (int64_t i = 0; i < width; i += n) {
        int64_t left = width - i;
        will_read(at + i);
        Vec<R> v = take<R>(at + i, left);
        if (bias) v += take<R>(bias + i, left);
        for (int64_t k = left; k < n; k++) v[k] = lowest;
        store(row_of + i, v);
        most = v > most ? v : most;
      }
      int64_t target = targets[row];
      if (target < 0 || target >= width) {  // no such class: a loss that is seen, no harm done
        losses[row] = std::numeric_limits<R>::quiet_NaN();
        continue;
      }
      R top = largest<R>(most), picked = row_of[target];
      if (!(top > lowest)) top = 0;  // nothing but NaN and -infinity: the loss will be no number
      for (int64_t i = 0; i < width; i += n) {
        Vec<R> e = exponential(load<R>(row_of + i) - top);
        for (int64_t k = width - i; k < n; k++) e[k] = 0;
        store(row_of + i, e);
        totals += e;
      }
      R total = sum<R>(totals), share_of_one = R(1) / total;
      losses[row] = std::log(total) - (picked - top);
      row_of[target] -= total;
      for (int64_t i = 0; i < width; i += n) {
        Vec<R> d = load<R>(row_of + i) * share_of_one;
        put<R>(at + i, d, width - i);
        if (d_bias) store(sums + i, load<R>(sums + i) + d);
      }
    }
  });
  for (int64_t i = 0; d_bias && i < width; i++)
    for (int64_t thread = 0; thread < threads; thread++)
      d_bias[i] += scratch[(thread * 2 + 1) * padded + i];
}

// total += x.
void add_to(float* total, const bf16* x, int64_t count, int64_t threads) {
  constexpr int64_t n = Lanes<float>::n, row = 64 * n;
  deal((count + row - 1) / row, threads, [&](int64_t, Range mine) {
    for (int64_t i = mine.begin * row; i < std::min(count, mine.end * row); i += n) {
      will_read(x + i);
      will_read(total + i);
      put<float>(total + i, take<float>(total + i, count - i) + take<float>(x + i, count - i),
                 count - i);
    }
  });
}

}  // namespace
}  // namespace ys

using ys::bf16;

#define NORM(name, X, A, Y)                                                                      \
  void norm_forward_##name(const X* x, const A* added, const X* gain, X* stream, Y* y, X* r_rms,  \
                           int64_t rows, int64_t width, double eps, int64_t threads) {            \
    ys::norm_forward(x, added, gain, stream, y, r_rms, rows, width, eps, threads);                \
  }                                                                                               \
  void norm_backward_##name(const Y* dy, const X* d_out, const X* stream, const X* gain,          \
                            const X* r_rms, X* d_stream, A* d_added, X* d_gain, int64_t rows,     \
                            int64_t width, int64_t threads) {                                     \
    ys::norm_backward(dy, d_out, stream, gain, r_rms, d_stream, d_added, d_gain, rows, width,     \
                      threads);                                                                   \
  }
#define GATE_AND_LOSS(name, T, P)                                                                \
  void gate_forward_##name(const T* both, T* y, int64_t rows, int64_t width, int64_t threads) {   \
    ys::gate_forward(both, y, rows, width, threads);                                              \
  }                                                                                               \
  void gate_backward_##name(const T* both, const T* dy, T* d_both, T* y, int64_t rows,            \
                            int64_t width, int64_t threads) {                                     \
    ys::gate_backward(both, dy, d_both, y, rows, width, threads);                                 \
  }                                                                                               \
  void cross_entropy_##name(T* logits, const P* bias, const int64_t* targets, P* losses,          \
                            P* d_bias, int64_t rows, int64_t width, int64_t threads) {            \
    ys::cross_entropy(logits, bias, targets, losses, d_bias, rows, width, threads);               \
  }

// Named after the types of stream, addend and normed row; of logits, gate and up. b bf16, f float,
// d double.
extern "C" {
NORM(ddd, double, double, double)
NORM(fff, float, float, float)
NORM(ffb, float, float, bf16)
NORM(fbf, float, bf16, float)
NORM(fbb, float, bf16, bf16)
GATE_AND_LOSS(d, double, double)
GATE_AND_LOSS(f, float, float)
GATE_AND_LOSS(b, bf16, float)
void add_to_fb(float* total, const bf16* x, int64_t count, int64_t threads) {
  ys::add_to(total, x, count, threads);
}
}
