// The gradient of a matrix W in y = x @ W: x^T @ dy over very many rows, in bfloat16 on AMX.
//
// Both factors are row-major, and the tiles need columns of x and pairs of rows of dy. All threads
// repack a piece of the rows; then each adds its share of the matmul. The sums of a block of 32 x
// 32 stay contiguous until the end: as rows of W they would be many cache lines apart, and loading
// and storing them took as long as the multiplications.

#include "gemm.h"

#if defined(__AMX_BF16__)
namespace ys {
namespace {

constexpr int64_t PIECE = 512;              // rows at a time
constexpr int64_t TILE = 512, SUMS = 1024;  // numbers in a tile of bfloat16, and in a block of sums
constexpr int64_t STRIP = PIECE / 32 * TILE;  // numbers in 16 columns of a piece

// Rows 2i and 2i + 1 of 16 columns, interleaved, for i in 0..15; rows from `rows` on are 0.
void interleave(const bf16* from, int64_t step, int64_t rows, U32 out[16]) {
  for (int64_t i = 0; i < 16; i++) {
    U16 even{}, odd{};
    if (2 * i < rows) std::memcpy(&even, from + 2 * i * step, 32);
    if (2 * i + 1 < rows) std::memcpy(&odd, from + (2 * i + 1) * step, 32);
    out[i] = __builtin_convertvector(even, U32) | (__builtin_convertvector(odd, U32) << 16);
  }
}

// A tile of 32 rows x 16 columns; transposed: each of its rows is a column of x.
void pack_tile(const bf16* from, int64_t step, int64_t rows, bool transposed, bf16* tile) {
  alignas(64) U32 pairs[16];
  interleave(from, step, rows, pairs);
  if (!transposed) return void(std::memcpy(tile, pairs, sizeof(pairs)));
  const uint32_t* numbers = reinterpret_cast<const uint32_t*>(pairs);
  uint32_t* to = reinterpret_cast<uint32_t*>(tile);
  for (int column = 0; column < 16; column++)
    for (int i = 0; i < 16; i++) to[column * 16 + i] = numbers[i * 16 + column];
}

// Adds n tiles of 32 columns of x and of dy to a block of sums; `begin`: the sums start at 0.
void add_block(const bf16* left, const bf16* right, int64_t n, float* sums, bool begin) {
  if (begin) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 128);
    _tile_loadd(1, sums + 16, 128);
    _tile_loadd(2, sums + 512, 128);
    _tile_loadd(3, sums + 528, 128);
  }
  for (int64_t i = 0; i < n; i++) {  // the next block reuses dy's tiles, but not x's
    _tile_loadd(6, right + i * TILE, 64);
    _tile_stream_loadd(4, left + i * TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + STRIP + i * TILE, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_stream_loadd(5, left + STRIP + i * TILE, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 512, 128);
  _tile_stored(3, sums + 528, 128);
}

struct Factor {
  const bf16* numbers;
  int64_t step, columns;
};

void weight_grad(Factor x, Factor dy, int64_t rows, bf16* packed, float* sums, float* out,
                 int threads) {
  const int64_t strips = x.columns / 16, down = x.columns / 32, across = dy.columns / 32;
  bf16* right = packed + strips * STRIP;
#pragma omp parallel num_threads(threads)
  {
    TileShapes shapes(16, 16);
    _tile_loadconfig(&shapes);
    for (int64_t from = 0; from < rows; from += PIECE) {
      const int64_t some = std::min(PIECE, rows - from), tiles = (some + 31) / 32;
#pragma omp for
      for (int64_t strip = 0; strip < strips + dy.columns / 16; strip++) {
        const bool is_x = strip < strips;
        const Factor& factor = is_x ? x : dy;
        const bf16* source =
            factor.numbers + from * factor.step + (is_x ? strip : strip - strips) * 16;
        for (int64_t i = 0; i < tiles; i++)
          pack_tile(source + i * 32 * factor.step, factor.step, some - i * 32, is_x,
                    packed + strip * STRIP + i * TILE);
      }
#pragma omp for collapse(2) schedule(static)
      for (int64_t j = 0; j < across; j++)
        for (int64_t i = 0; i < down; i++)
          add_block(packed + 2 * i * STRIP, right + 2 * j * STRIP, tiles,
                    sums + (j * down + i) * SUMS, from == 0);
    }
#pragma omp for
    for (int64_t row = 0; row < x.columns; row++)
      for (int64_t j = 0; j < across; j++)
        std::memcpy(out + row * dy.columns + j * 32,
                    sums + (j * down + row / 32) * SUMS + row % 32 * 32, 128);
    _tile_release();
  }
}

}  // namespace
}  // namespace ys
#endif

extern "C" {

int ys_has_weight_grad(void) {
#if defined(__AMX_BF16__)
  return ys::amx_is_allowed();
#else
  return 0;
#endif
}

int64_t ys_weight_grad_workspace(int64_t k, int64_t m) { return (k + m) / 16 * (512 / 32 * 512); }

void ys_weight_grad(const ys_bf16* x, int64_t stride_x, const ys_bf16* dy, int64_t stride_dy,
                    int64_t rows, int64_t k, int64_t m, ys_bf16* packed, float* sums, float* out,
                    int64_t threads) {
#if defined(__AMX_BF16__)
  ys::weight_grad({x, stride_x, k}, {dy, stride_dy, m}, rows, packed, sums, out, int(threads));
#else
  (void)x, (void)stride_x, (void)dy, (void)stride_dy, (void)rows, (void)k, (void)m;
  (void)packed, (void)sums, (void)out, (void)threads;
#endif
}
}
