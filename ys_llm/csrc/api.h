// Every struct and function of the compiled library that Python uses.
//
// Plain C without preprocessor lines: C++ reads it through exports.h, Python through cffi
// (loader.py). Arrays are row-major. A suffix names element types: b bfloat16, f float, d double.
// `threads` is the number of OpenMP threads; a call with fewer available gives the same result.

typedef uint16_t ys_bf16;  // the upper half of a float

// Offset and size of a field ("ys_linear.weight") or of a struct ("ys_linear", offset 0).
struct ys_field {
  const char* name;
  int64_t offset, size;
};
// Every field of every struct below; the last entry has no name.
const struct ys_field* ys_layout(void);

// The instructions that bfloat16 matmuls run on: "AMX", "AVX512-BF16", "AVX-512" or "vectors".
const char* ys_units(void);

// In rowwise.cpp: operations between large matmuls.

// residual = x + delta;  y = residual / rms(residual) * gain;  r_rms = 1 / rms(residual).
// x, delta, residual and y are rows x width. Without `delta` (null) the residual is x, not written.
// Suffix: types of x, delta and y.
void ys_rms_norm_forward_ddd(const double* x, const double* delta, const double* gain,
                             double* residual, double* y, double* r_rms, int64_t rows,
                             int64_t width, double eps, int64_t threads);
void ys_rms_norm_forward_fff(const float* x, const float* delta, const float* gain, float* residual,
                             float* y, float* r_rms, int64_t rows, int64_t width, double eps,
                             int64_t threads);
void ys_rms_norm_forward_ffb(const float* x, const float* delta, const float* gain, float* residual,
                             ys_bf16* y, float* r_rms, int64_t rows, int64_t width, double eps,
                             int64_t threads);
void ys_rms_norm_forward_fbf(const float* x, const ys_bf16* delta, const float* gain,
                             float* residual, float* y, float* r_rms, int64_t rows, int64_t width,
                             double eps, int64_t threads);
void ys_rms_norm_forward_fbb(const float* x, const ys_bf16* delta, const float* gain,
                             float* residual, ys_bf16* y, float* r_rms, int64_t rows, int64_t width,
                             double eps, int64_t threads);

// Gradients of the above. `d_out`, the gradient that reaches the residual directly, may be null;
// d_delta, null or d_residual in the type of delta.
void ys_rms_norm_backward_ddd(const double* d_y, const double* d_out, const double* residual,
                              const double* gain, const double* r_rms, double* d_residual,
                              double* d_delta, double* d_gain, int64_t rows, int64_t width,
                              int64_t threads);
void ys_rms_norm_backward_fff(const float* d_y, const float* d_out, const float* residual,
                              const float* gain, const float* r_rms, float* d_residual,
                              float* d_delta, float* d_gain, int64_t rows, int64_t width,
                              int64_t threads);
void ys_rms_norm_backward_ffb(const ys_bf16* d_y, const float* d_out, const float* residual,
                              const float* gain, const float* r_rms, float* d_residual,
                              float* d_delta, float* d_gain, int64_t rows, int64_t width,
                              int64_t threads);
void ys_rms_norm_backward_fbf(const float* d_y, const float* d_out, const float* residual,
                              const float* gain, const float* r_rms, float* d_residual,
                              ys_bf16* d_delta, float* d_gain, int64_t rows, int64_t width,
                              int64_t threads);
void ys_rms_norm_backward_fbb(const ys_bf16* d_y, const float* d_out, const float* residual,
                              const float* gain, const float* r_rms, float* d_residual,
                              ys_bf16* d_delta, float* d_gain, int64_t rows, int64_t width,
                              int64_t threads);

// y = silu(gate) * up; a row of gate_up is gate, then up: rows x 2 width.
void ys_swiglu_gate_forward_d(const double* gate_up, double* y, int64_t rows, int64_t width,
                              int64_t threads);
void ys_swiglu_gate_forward_f(const float* gate_up, float* y, int64_t rows, int64_t width,
                              int64_t threads);
void ys_swiglu_gate_forward_b(const ys_bf16* gate_up, ys_bf16* y, int64_t rows, int64_t width,
                              int64_t threads);

// d_gate_up from d_y, and y recomputed; y may be the memory of d_y.
void ys_swiglu_gate_backward_d(const double* gate_up, const double* d_y, double* d_gate_up,
                               double* y, int64_t rows, int64_t width, int64_t threads);
void ys_swiglu_gate_backward_f(const float* gate_up, const float* d_y, float* d_gate_up, float* y,
                               int64_t rows, int64_t width, int64_t threads);
void ys_swiglu_gate_backward_b(const ys_bf16* gate_up, const ys_bf16* d_y, ys_bf16* d_gate_up,
                               ys_bf16* y, int64_t rows, int64_t width, int64_t threads);

// losses = w (logsumexp(z) - z[target]) with z = logits + bias; the logits are overwritten with
// w (softmax(z) - onehot(target)), whose sum over the rows is added to d_bias. `weights` (w, one a
// row) may be null: 1; a row with weight 0 is not read. A target that is no class gives loss NaN.
// With `share` and `other` (one a row, or both null) losses = -w log(share p + other) with
// p = softmax(z)[target]; d_share and d_other are w times the gradients, and those of the logits
// are multiplied by share p / (share p + other).
void ys_cross_entropy_d(double* logits, const double* bias, const int64_t* targets,
                        const double* weights, const double* share, const double* other,
                        double* losses, double* d_share, double* d_other, double* d_bias,
                        int64_t rows, int64_t width, int64_t threads);
void ys_cross_entropy_f(float* logits, const float* bias, const int64_t* targets,
                        const float* weights, const float* share, const float* other, float* losses,
                        float* d_share, float* d_other, float* d_bias, int64_t rows, int64_t width,
                        int64_t threads);
void ys_cross_entropy_b(ys_bf16* logits, const float* bias, const int64_t* targets,
                        const float* weights, const float* share, const float* other, float* losses,
                        float* d_share, float* d_other, float* d_bias, int64_t rows, int64_t width,
                        int64_t threads);

// The attention of a tile: `queries` of each row of a batch, the last of `width` keys, each of
// which sees keys first[b, c] to its own, and sentinel[b, c], a score of no key. rests = the
// softmax there, masses = its sum over keys whose token is the target; the scores (batch x queries
// x width) are overwritten with the softmax, negative where the token is not the target, 0 where
// not seen.
void ys_copied_mass_d(double* scores, const double* sentinel, const int64_t* first,
                      const int32_t* tokens, const int32_t* targets, double* rests, double* masses,
                      int64_t batch, int64_t queries, int64_t width, int64_t threads);
void ys_copied_mass_f(float* scores, const float* sentinel, const int64_t* first,
                      const int32_t* tokens, const int32_t* targets, float* rests, float* masses,
                      int64_t batch, int64_t queries, int64_t width, int64_t threads);
void ys_copied_mass_b(ys_bf16* scores, const float* sentinel, const int64_t* first,
                      const int32_t* tokens, const int32_t* targets, float* rests, float* masses,
                      int64_t batch, int64_t queries, int64_t width, int64_t threads);

// The gradient of the scores: |a| ([a > 0] d_mass - common), with a row of `width` for each query.
void ys_copied_mass_backward_d(const double* weights, const double* d_mass, const double* common,
                               double* d_scores, int64_t rows, int64_t width, int64_t threads);
void ys_copied_mass_backward_f(const float* weights, const float* d_mass, const float* common,
                               float* d_scores, int64_t rows, int64_t width, int64_t threads);
void ys_copied_mass_backward_b(const ys_bf16* weights, const float* d_mass, const float* common,
                               ys_bf16* d_scores, int64_t rows, int64_t width, int64_t threads);

// total += x.
void ys_add_to_fb(float* total, const ys_bf16* x, int64_t count, int64_t threads);

// In convolution.cpp.

// y_t = x_t + sum_j w_j x_{t-j} over 1 <= j <= earlier; row earlier - j of `weight` (earlier x
// width) is w_j. x and y are batch x length x width, or length x batch x width where time_major.
// `past`, batch x earlier x width, are the inputs before the first. reach[b, t] is how many earlier
// tokens t sees; null: all.
void ys_convolution_forward_d(const double* x, const double* weight, const double* past,
                              const int32_t* reach, double* y, int64_t batch, int64_t length,
                              int64_t width, int64_t earlier, int64_t time_major, int64_t threads);
void ys_convolution_forward_f(const float* x, const float* weight, const float* past,
                              const int32_t* reach, float* y, int64_t batch, int64_t length,
                              int64_t width, int64_t earlier, int64_t time_major, int64_t threads);
void ys_convolution_forward_b(const ys_bf16* x, const float* weight, const float* past,
                              const int32_t* reach, ys_bf16* y, int64_t batch, int64_t length,
                              int64_t width, int64_t earlier, int64_t time_major, int64_t threads);
// The gradients; d_weight is a sum over all tokens.
void ys_convolution_backward_d(const double* d_y, const double* x, const double* weight,
                               const double* past, const int32_t* reach, double* d_x,
                               double* d_weight, double* d_past, int64_t batch, int64_t length,
                               int64_t width, int64_t earlier, int64_t time_major, int64_t threads);
void ys_convolution_backward_f(const float* d_y, const float* x, const float* weight,
                               const float* past, const int32_t* reach, float* d_x, float* d_weight,
                               float* d_past, int64_t batch, int64_t length, int64_t width,
                               int64_t earlier, int64_t time_major, int64_t threads);
void ys_convolution_backward_b(const ys_bf16* d_y, const ys_bf16* x, const float* weight,
                               const float* past, const int32_t* reach, ys_bf16* d_x,
                               float* d_weight, float* d_past, int64_t batch, int64_t length,
                               int64_t width, int64_t earlier, int64_t time_major, int64_t threads);

// In linear.cpp: large matmuls in float32.

// out = x @ W: x is rows x k, its rows stride_x apart; W, k x m, is packed by ys_pack; out is
// rows x m.
void ys_matmul_f(const float* x, int64_t stride_x, const float* packed, int64_t rows, int64_t k,
                 int64_t m, float* out, int64_t threads);
// Numbers of `packed` for ys_add_weight_grad_f.
int64_t ys_weight_grad_workspace_f(int64_t k);
// sums += x^T dy, of rows x k and rows x m numbers; = where it begins. The sums are a packed k x m
// matrix: ys_packed_size; `packed` is workspace.
void ys_add_weight_grad_f(const float* x, int64_t stride_x, const float* dy, int64_t stride_dy,
                          int64_t rows, int64_t k, int64_t m, float* packed, float* sums,
                          int64_t begins, int64_t threads);
// out (k x m, row by row) = the packed matrix.
void ys_unpack_f(const float* packed, int64_t k, int64_t m, float* out, int64_t threads);

// In weight_grad.cpp: the gradient of a large matrix, on AMX.

// Whether this processor can run ys_weight_grad (AMX).
int ys_has_weight_grad(void);
// bfloat16 numbers of workspace for ys_weight_grad.
int64_t ys_weight_grad_workspace(int64_t k, int64_t m);
// out (k x m) = x^T @ dy, both bfloat16. k and m are multiples of 32; rows of x and dy are stride_x
// and stride_dy numbers apart; `packed` and `sums` (k m floats) are workspace, aligned to 64 bytes.
void ys_weight_grad(const ys_bf16* x, int64_t stride_x, const ys_bf16* dy, int64_t stride_dy,
                    int64_t rows, int64_t k, int64_t m, ys_bf16* packed, float* sums, float* out,
                    int64_t threads);

// In three_tier/recurrence.cpp: training passes over a sequence.

// Operand types of matmuls: double, float, or bfloat16 with sums in float.
enum ys_operands { YS_F64 = 0, YS_F32 = 1, YS_BF16_OPERANDS = 2 };

// Numbers in a packed k x n matrix.
int64_t ys_packed_size(int operands, int64_t k, int64_t n);
// Packs n_matrices of k x n, in double (YS_F64) or float, into the panels of gemm.h. Matrices,
// rows and columns are stride_matrix, stride_k and stride_n numbers apart.
void ys_pack(int operands, const void* source, int64_t n_matrices, int64_t stride_matrix,
             int64_t stride_k, int64_t stride_n, int64_t k, int64_t n, void* packed);

// One summary (L or G). U is the number of its updates in the sequence; R its width.
struct ys_three_tier_summary {
  int64_t interval, width;                       // interval 0: there is no such summary
  const void *controller, *influencer, *shaper;  // packed S x R, S x R, R x S; backward: transposed
  const void *gain, *bias;                       // R
  void* value;  // B x S: before the first step, then after the last; backward: its gradient
  void *old_value, *x_hat, *rstd, *normed;  // saved by each update: U x B x (S, R, heads, R)
  void *d_value, *d_pre;                    // gradients in each update: U x B x S, U x B x R
  void *d_gain, *d_bias;                    // R
};

// A forward or backward pass over T steps of B rows. Pointers are to the operand type (drive, h,
// gate, x_hat, y, d_h, d_pre, d_gate, d_y and what updates save but x_hat and rstd) or to the type
// of sums.
struct ys_three_tier_pass {
  int64_t length, batch, d_state, n_heads, position;
  int64_t row_groups, column_groups;  // the grid of threads
  int64_t saves;                      // whether backward will follow: all steps are kept
  const void* drive;                  // T x B x S; with a gate T x B x 2 S, then the gate's input
  const uint8_t* starts;              // T x B: 1 at the first token of a document; or null
  const void *controller, *shaper;    // packed, a matrix for each head; S x S or null
  const void *gain, *bias;            // S
  const void *summary_scale, *drive_bias, *gate_bias;  // S; each may be null: without a gate
  void* main;              // B x S: h before the first step, then after the last; or d_h
  void *h, *x_hat, *rstd;  // T x B x (S, S, heads); before the first h is that before step 0
  void *summary_sum, *y;   // windows x B x S; update steps x B x S with a shaper
  const void* d_h;         // T x B x S
  void *d_drive, *d_y;     // as drive; as y
  void* kept;              // T x B x S: what each step multiplied; null without a gate
  void *d_gain, *d_bias, *d_summary_scale, *d_drive_bias, *d_gate_bias;  // S
  struct ys_three_tier_summary summaries[2];                             // local, global
};

void ys_three_tier_forward(int operands, const struct ys_three_tier_pass* pass);
void ys_three_tier_backward(int operands, const struct ys_three_tier_pass* pass);

// In trunk_step.cpp: decoding, one token of each of several sequences.

enum ys_limits { YS_MAX_SEQUENCES = 64 };  // of one call
enum ys_weight_format { YS_REAL = 0, YS_BF16 = 1, YS_INT8 = 2 };

// y = W x + bias. W is n_out x n_in; output r reads the slice of x of its group (a head): n_groups
// slices of n_in numbers, 1 for a dense matrix. A row of an int8 weight is multiplied by scales[r].
// The rows of each group are packed, ys_decode_panel of them at a time, column by column; the last
// panel of a group is padded with zeros.
struct ys_linear {
  const void *weight, *scales, *bias;  // the last two may be null
  int64_t n_in, n_out, n_groups, format;
};
struct ys_layer_norm {
  const void *gain, *bias;
};
struct ys_decode_layer {
  const void* mixer_gain;  // of the RMSNorm before the mixer; null: no norm and no residual
  const void* mlp_gain;    // of the RMSNorm before the MLP; null: no MLP
  int64_t mixer_kind;      // see ys_mixer_kind
  const void* mixer;       // its weights: a struct ys_<kind>_weights
  struct ys_linear gate, up, down;
};
// The copy tier. K is the width of a key: query, key and token_key are K x D, gate is 1 x D.
struct ys_copy_weights {
  struct ys_linear query, key, token_key, gate;
  int64_t slots;  // of a ring, at most
};
// What a sequence can copy: slots 0 to `used` each hold a token and its key. The token that is read
// goes to slot `next`, which counts as used. The keys are packed like the rows of a ys_linear.
struct ys_copy_ring {
  void* keys;
  int64_t* tokens;
  int64_t next, used;
};
struct ys_decode_model {
  const void *embedding, *final_gain;  // V x D; D, null: no final norm
  const struct ys_decode_layer* layers;
  struct ys_linear head;
  const struct ys_copy_weights* copy;  // null: no copy tier
  int64_t n_layers, d_model;
  double rms_eps;
};

// Rows of a panel of weights, for YS_F64 or YS_F32 activations. (In gemv.cpp.)
int64_t ys_decode_panel(int operands);
// The number of a mixer's decode step, for mixer_kind; -1: no step has this name.
int64_t ys_mixer_kind(const char* name);
// Numbers in the state of one sequence in this layer.
int64_t ys_mixer_state_size(int64_t kind, const void* mixer);
// Numbers of scratch for a step of n sequences.
int64_t ys_decode_scratch(const struct ys_decode_model* model, int64_t n, int64_t threads);
// Reads one token of each of n sequences and writes n x V logits. positions[i] tokens were read
// before; states[i], the states of all layers one after the other, is updated in place. With a copy
// tier the K numbers after them are `pending`, and rings[i] is updated, too; without one `rings`
// may be null. The model is only read: threads may share it, each with its own states, rings,
// logits and scratch.
void ys_decode_f(const struct ys_decode_model* model, int64_t n, const int64_t* tokens,
                 const int64_t* positions, float* const* states,
                 const struct ys_copy_ring* const* rings, float* logits, float* scratch,
                 int64_t threads);
void ys_decode_d(const struct ys_decode_model* model, int64_t n, const int64_t* tokens,
                 const int64_t* positions, double* const* states,
                 const struct ys_copy_ring* const* rings, double* logits, double* scratch,
                 int64_t threads);

// In three_tier/step.cpp: the decode step of the three-tier mixer.

struct ys_three_tier_summary_weights {
  struct ys_linear controller, influencer, shaper;
  struct ys_layer_norm norm;
  int64_t interval, width;  // interval 0: there is no such summary
};
// The mixer's state is h, L and G: 3 d_state numbers.
struct ys_three_tier_weights {
  struct ys_linear in_proj, gate, controller, shaper, out_proj;
  // Without a gate its weight is null, and so is the shaper's where y is h.
  struct ys_layer_norm norm;
  const void* summary_scale;                          // null: 1
  struct ys_three_tier_summary_weights summaries[2];  // local, global
  int64_t d_state, n_heads;
  double norm_eps;
};

// In sampling.cpp: drawing tokens.

enum ys_penalised { YS_PENALTY_WINDOW = 64 };  // recent tokens of each row, at most

// The options of inference/sampling.py.
struct ys_sampling {
  double temperature, top_p, min_p, repetition_penalty;
  int64_t top_k;
};
// Draws a token from each of n rows of logits (n x V): the first, in the order of ids, whose
// cumulative probability exceeds uniforms[i], which is in [0, 1). ids[i] is -1 where a logit is NaN
// or infinite; logprobs[i] is its log-softmax, before penalty, temperature and filters. The penalty
// is for the first n_recent[i] of row i of `recent`, n x YS_PENALTY_WINDOW ids.
void ys_sample_f(const struct ys_sampling* sampling, int64_t n, int64_t vocab_size,
                 const float* logits, const int64_t* recent, const int64_t* n_recent,
                 const double* uniforms, int64_t* ids, double* logprobs, int64_t threads);
void ys_sample_d(const struct ys_sampling* sampling, int64_t n, int64_t vocab_size,
                 const double* logits, const int64_t* recent, const int64_t* n_recent,
                 const double* uniforms, int64_t* ids, double* logprobs, int64_t threads);
