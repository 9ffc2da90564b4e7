// The whole of sampling: every value of the program is computed once.
//
// Values stand as [row slot][column][image][channel]: the rows of a product are images side by side, or a whole row of
// the grid times them, at one distance from each other for every tap. A step's sums start from its bias (and the part
// that only needs the rows above), run through its taps' matrices and leave the registers activated.
// Floor: for many images the multiplications, for few the weights, which pass from L3 once a position.

#include "sampler/sampler.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#include "simd/activate.h"
#include "sampler/noise.h"
#include "shared/span.h"

namespace vqfast::VQFAST_ISA {
namespace {

// A group of threads meets here: each waits awake at first, and asleep when a busy machine keeps another from coming.
struct alignas(64) Barrier {
  int32_t arrived, round, asleep;
  void wait(int32_t threads) {
    const int32_t now = __atomic_load_n(&round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
      arrived = 0;
      __atomic_store_n(&round, now + 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&asleep, __ATOMIC_SEQ_CST)) wake();
      return;
    }
    for (int spins = 0; spins < 2000; ++spins) {
      if (__atomic_load_n(&round, __ATOMIC_ACQUIRE) != now) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    __atomic_add_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&round, __ATOMIC_SEQ_CST) == now) sleep(now);
    __atomic_sub_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
  }
#if defined(__linux__)
  void sleep(int32_t now) { syscall(SYS_futex, &round, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &round, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(int32_t) { sched_yield(); }
  void wake() {}
#endif
};

// Where things are in memory, in bytes: what all groups share counts from its beginning, the rest from a group's.
struct Placed {
  int64_t tiles, columns;      // of the sums, padded; a tile of paired ones has its halves side by side
  int64_t channels, stride;    // of the value, and padded
  int64_t matrix[2], depth[2];  // of the taps that can't [0], and can [1], be read when a row starts
  int64_t tables;              // (num_embeddings + 1, columns) for each tap on codes
  int64_t value, start, partial;  // of a group; partial: -1 if nothing is known when a row starts
};

struct Layout {
  int64_t codes, condition, condition_stride, scratch, scratch_bytes, segment_bytes, groups, group_bytes, end;
};

template <class Product, class Stored>
struct Sampler {
  using T = typename Product::Element;
  using V = typename Product::Vector;
  static constexpr int kLanes = Sums<Product>::kLanes, kColumns = Sums<Product>::kColumns;

  const Sampling& s;
  Layout* layout;
  Placed* placed;
  Barrier* barriers;

  explicit Sampler(const Sampling& sampling) : s(sampling) {
    layout = reinterpret_cast<Layout*>(s.memory);
    barriers = reinterpret_cast<Barrier*>(s.memory + padded(sizeof(Layout)));
    placed = reinterpret_cast<Placed*>(barriers + s.groups);
  }

  // ------------------------------------------------------------------------------------------------ the layout

  static int64_t padded(int64_t bytes) { return ceil_div(bytes, 64) * 64; }
  // Whole vectors are loaded where a few channels remain.
  static int64_t room(int64_t count) { return padded((count + kColumns) * int64_t(sizeof(T))); }
  int64_t images() const { return ceil_div(s.batch, s.groups); }  // of the largest group

  // Places everything; `store` only where memory is.
  Layout lay_out(bool store) const {
    Layout l{};
    int64_t shared = padded(sizeof(Layout)) + s.groups * sizeof(Barrier) + padded(s.num_steps * sizeof(Placed));
    int64_t own = 0;
    const auto take = [](int64_t& at, int64_t bytes) { return (at += bytes) - bytes; };
    l.codes = take(own, padded(s.cache.rows * (s.cache.left + s.block + s.cache.right) * images() * 4));
    l.condition_stride = ceil_div(s.condition_channels, kColumns) * kColumns;
    l.condition = take(own, room(s.block * images() * l.condition_stride));
    for (int64_t i = 0; i < s.num_steps; ++i) {
      const Step& step = s.steps[i];
      Placed p{};
      const bool paired = is_paired(step);
      p.channels = paired ? step.width / 2 : step.width;
      p.tiles = paired ? ceil_div(p.channels, kLanes) : ceil_div(step.width, kColumns);
      p.columns = p.tiles * kColumns;
      p.stride = paired ? p.tiles * kLanes : p.columns;
      int64_t tables = 0, early = 0, count = 0;
      for_taps(step, [&](const Term& term, const Tap& tap, int64_t) {
        ++count;
        early |= tap.early;
        if (term.source == kCodes) ++tables;
        else if (term.weight >= 0) p.depth[tap.early] += term.channels;
      });
      for (int e = 0; e < 2; ++e) p.matrix[e] = take(shared, padded(p.depth[e] * p.columns * sizeof(Stored)));
      p.tables = take(shared, room(tables * (s.num_embeddings + 1) * p.columns));
      p.value = take(own, room(step.rows * (step.left + s.block + step.right) * images() * p.stride));
      p.start = take(own, room(images() * p.columns));
      p.partial = early && step.phase != kRow ? take(own, room(s.block * images() * p.columns)) : -1;
      l.segment_bytes = most(l.segment_bytes, padded(count * sizeof(Segment)));
      if (store) placed[i] = p;
    }
    l.scratch_bytes = l.segment_bytes + padded((s.num_embeddings + kWords) * 4) + 3 * padded(s.num_embeddings * 8);
    l.scratch = take(own, l.scratch_bytes * s.threads);
    l.groups = shared;
    l.group_bytes = own;
    l.end = shared + own * s.groups;
    return l;
  }

  // f(term, tap, its number in the term) in the order of the matrices.
  template <class F>
  void for_taps(const Step& step, const F& f) const {
    for (int64_t t = step.first_term; t < step.first_term + step.num_terms; ++t)
      for (int64_t n = 0; n < s.terms[t].num_taps; ++n) f(s.terms[t], s.taps[s.terms[t].first_tap + n], n);
  }

  static bool is_paired(const Step& step) { return step.activation >= kGate; }

  // The sum that stands in lane l of vector v of tile j; -1 for padding.
  static int64_t sum_at(const Step& step, const Placed& p, int64_t j, int64_t v, int64_t l) {
    const int64_t channel = is_paired(step) ? j * kLanes + l : j * kColumns + v * kLanes + l;
    return channel >= p.channels ? -1 : channel + (is_paired(step) ? v * p.channels : 0);
  }

  // from[width] into the order of the tiles: tile j goes to to + j * distance.
  template <class From, class To>
  static void spread(const Step& step, const Placed& p, const From* from, To* to, int64_t distance) {
    for (int64_t j = 0; j < p.tiles; ++j)
      for (int64_t v = 0; v < kVectors; ++v)
        for (int64_t l = 0; l < kLanes; ++l) {
          const int64_t at = sum_at(step, p, j, v, l);
          to[j * distance + v * kLanes + l] = from && at >= 0 ? To(from[at]) : To{};
        }
  }

  void begin() const {
    *layout = lay_out(true);
    for (int64_t g = 0; g < s.groups; ++g) barriers[g] = {};
  }

  // Packs what the steps share, and gives each group's caches their zeros and their codes outside of the grid.
  void pack(int64_t i) const {
    const Step& step = s.steps[i];
    const Placed& p = placed[i];
    const Stored* weights = static_cast<const Stored*>(s.weights);
    int64_t row[2] = {};
    T* table = shared<T>(p.tables);
    for_taps(step, [&](const Term& term, const Tap& tap, int64_t n) {
      if (term.weight < 0) return;
      const int64_t inputs = term.source == kCodes ? s.num_embeddings : term.channels;
      const Stored* from = weights + term.weight + n * inputs * step.width;
      if (term.source == kCodes) {
        for (int64_t k = 0; k <= inputs; ++k, table += p.columns)  // nothing for the code outside the grid
          spread(step, p, k < inputs ? from + k * step.width : nullptr, table, kColumns);
      } else {
        Stored* to = shared<Stored>(p.matrix[tap.early]) + row[tap.early] * kColumns;
        for (int64_t c = 0; c < inputs; ++c)
          spread(step, p, from + c * step.width, to + c * kColumns, p.depth[tap.early] * kColumns);
        row[tap.early] += inputs;
      }
    });
    for (int64_t g = 0; g < s.groups; ++g) {
      const Group group{*this, g};
      memset(group.template at<char>(p.value), 0, p.start - p.value);
      T* start = group.template at<T>(p.start);
      for (int64_t b = 0; b < group.batch; ++b, start += p.columns) {
        spread(step, p, step.bias < 0 ? nullptr : weights + step.bias, start, kColumns);
        if (step.label_bias < 0) continue;
        const Stored* label = weights + step.label_bias + s.labels[group.first + b] * step.width;
        for (int64_t j = 0; j < p.columns; ++j) {
          const int64_t at = sum_at(step, p, j / kColumns, j % kColumns / kLanes, j % kLanes);
          if (at >= 0) start[j] += T(label[at]);
        }
      }
      if (i > 0) continue;
      int32_t* codes = group.template at<int32_t>(layout->codes);
      const int64_t count = s.cache.rows * (s.cache.left + s.block + s.cache.right) * group.batch;
      for (int64_t n = 0; n < count; ++n) codes[n] = int32_t(s.num_embeddings);
    }
  }

  template <class U>
  U* shared(int64_t offset) const { return reinterpret_cast<U*>(s.memory + offset); }

  // ------------------------------------------------------------------------------------------------ a group's run

  struct Group {
    const Sampler& all;
    char* memory;
    int64_t first, batch;  // its images

    Group(const Sampler& sampler, int64_t g) : all(sampler) {
      const Span own = part_of(all.s.batch, all.s.groups, g);
      first = own.begin, batch = count_of(own);
      memory = all.s.memory + all.layout->groups + g * all.layout->group_bytes;
    }
    template <class U>
    U* at(int64_t offset) const { return reinterpret_cast<U*>(memory + offset); }

    // Where a grid position stands in a cache, in images; a block starts at `origin`.
    template <class Cache>
    int64_t cell(const Cache& cache, int64_t y, int64_t x) const {
      const int64_t slot = (y + cache.rows) % cache.rows, columns = cache.left + all.s.block + cache.right;
      return (slot * columns + cache.left + x % all.s.block) * batch;
    }
    T* value(int64_t i, int64_t y, int64_t x) const {
      return at<T>(all.placed[i].value) + cell(all.s.steps[i], y, x) * all.placed[i].stride;
    }
    int32_t* codes(int64_t y, int64_t x) const { return at<int32_t>(all.layout->codes) + cell(all.s.cache, y, x); }
  };

  // Values at row 0 that are multiplied: `steps` numbers a row, the rows `stride` apart.
  struct Segment {
    const T* rows;
    int64_t stride, steps;
  };

  // A step at positions x .. of row y: the taps that can (early) or can't be read when the row starts.
  // Its rows are images side by side, and then columns.
  struct Job {
    const Group& group;
    int64_t i, y, x;
    bool early;
    Segment* segments;
    int64_t num_segments = 0;
    const Step& step() const { return group.all.s.steps[i]; }
    const Placed& where() const { return group.all.placed[i]; }

    // Where a tap reads row 0.
    Segment read(const Term& term, const Tap& tap) const {
      const Layout& l = *group.all.layout;
      if (term.source == kCondition)
        return {group.template at<T>(l.condition) + x % group.all.s.block * group.batch * l.condition_stride,
                l.condition_stride, term.channels};
      const int64_t stride = group.all.placed[term.source].stride;
      return {group.value(term.source, y + tap.dy, x) + tap.dx * group.batch * stride, stride, term.channels};
    }

    void find_segments() {
      group.all.for_taps(step(), [&](const Term& term, const Tap& tap, int64_t) {
        if (tap.early == early && term.source != kCodes && term.weight >= 0) segments[num_segments++] = read(term, tap);
      });
    }
  };
  using Tile = T[kRows][kColumns];

  // What is added without a product, to `count` rows from m on of tile j.
  [[gnu::noinline]] static void start(const Job& job, int64_t j, int64_t m, int64_t count, Tile& sums) {
    const Group& group = job.group;
    const Sampler& all = group.all;
    const Step& step = job.step();
    const Placed& p = job.where();
    const bool partial = !job.early && p.partial >= 0;
    const T* first = group.template at<T>(partial ? p.partial : p.start) + j * kColumns;
    int64_t from = partial ? job.x % all.s.block * group.batch + m : m % group.batch;
    for (int64_t r = 0; r < count; ++r) {
      memcpy(sums[r], first + from * p.columns, sizeof sums[r]);
      if (++from == group.batch && !partial) from = 0;
    }
    const auto add = [&](const T* more, int64_t r, int64_t v) {
      store(load(sums[r] + v * kLanes) + load(more), sums[r] + v * kLanes);
    };
    const T* table = all.template shared<T>(p.tables) + j * kColumns;
    const bool paired = is_paired(step);
    all.for_taps(step, [&](const Term& term, const Tap& tap, int64_t) {
      if (term.source == kCodes && tap.early == job.early) {
        const int32_t* codes = group.codes(job.y + tap.dy, job.x) + tap.dx * group.batch + m;
        for (int64_t r = 0; r < count; ++r)
          for (int64_t v = 0; v < kVectors; ++v) add(table + codes[r] * p.columns + v * kLanes, r, v);
      } else if (term.weight < 0 && tap.early == job.early) {
        const Segment value = job.read(term, tap);
        const T* own = value.rows + m * value.stride + j * (paired ? kLanes : kColumns);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t v = 0; v < kVectors; ++v) add(own + r * value.stride + v * (paired ? p.channels : kLanes), r, v);
      }
      if (term.source == kCodes) table += (all.s.num_embeddings + 1) * p.columns;
    });
  }

  // The products. Nothing else is in here, so that every register is free for them.
  template <int kR>
  [[gnu::noinline]] static void multiply(const Job& job, int64_t j, int64_t m, Tile& tile) {
    const Placed& p = job.where();
    const Stored* matrix = job.group.all.template shared<Stored>(p.matrix[job.early]);
    matrix += j * p.depth[job.early] * kColumns;
    Sums<Product, kR> sums;
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kVectors; ++v) sums.of[r][v] = load(tile[r] + v * kLanes);
    for (const Segment* segment = job.segments; segment < job.segments + job.num_segments; ++segment) {
      sums.add(segment->steps, segment->rows + m * segment->stride, segment->stride, 1, matrix);
      matrix += segment->steps * kColumns;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kVectors; ++v) store(sums.of[r][v], tile[r] + v * kLanes);
  }

  template <int kR = kRows>
  static void multiply(int64_t rows, const Job& job, int64_t j, int64_t m, Tile& tile) {
    if (rows == kR) return multiply<kR>(job, j, m, tile);
    if constexpr (kR > 1) multiply<kR - 1>(rows, job, j, m, tile);
  }

  static V activated(int64_t activation, V x) {
    switch (activation) {
      case kRelu: return x < 0 ? V{} : x;
      case kElu: return elu(x);
      case kSilu: return x * sigmoid(x);
      case kGelu: return gelu(x);
      case kSigmoid: return sigmoid(x);
      case kTanh: return tanh(x);
      default: return x;
    }
  }
  static V multiplied(int64_t activation, V a, V b) {
    switch (activation) {
      case kGate: return Gate<V>(a, b).value();
      case kGlu: return a * sigmoid(b);
      default: return a * b;
    }
  }

  // Activates the sums and keeps them; what the row's positions add to is kept as it is.
  [[gnu::noinline]] static void finish(const Job& job, int64_t j, int64_t m, int64_t count, const Tile& sums) {
    const Group& group = job.group;
    const Step& step = job.step();
    const Placed& p = job.where();
    if (job.early && p.partial >= 0) {
      T* to = group.template at<T>(p.partial) + m * p.columns + j * kColumns;
      for (int64_t r = 0; r < count; ++r) memcpy(to + r * p.columns, sums[r], sizeof sums[r]);
      return;
    }
    const bool paired = is_paired(step);
    const int64_t channel = j * (paired ? kLanes : kColumns);
    const int64_t passed = step.residual < 0 ? 0 : group.all.placed[step.residual].stride;
    T* to = group.value(job.i, job.y, job.x) + m * p.stride + channel;
    const T* residual = step.residual < 0 ? nullptr : group.value(step.residual, job.y, job.x) + m * passed + channel;
    for (int64_t r = 0; r < count; ++r)
      for (int64_t v = 0; v < (paired ? 1 : kVectors); ++v) {
        V out = load(sums[r] + v * kLanes);
        out = paired ? multiplied(step.activation, out, load(sums[r] + kLanes)) : activated(step.activation, out);
        if (residual) out += load(residual + r * passed + v * kLanes);
        store(out, to + r * p.stride + v * kLanes);
      }
  }

  // One thread of a group.
  struct Worker {
    Group group;
    int64_t me, threads;
    Barrier& barrier;
    char* scratch;      // for a draw
    Segment* segments;  // room for the taps of a step

    void meet() const {
      if (threads > 1) barrier.wait(int32_t(threads));
    }

    void compute(int64_t i, bool early, int64_t y, int64_t x, int64_t columns) const {
      Job job{group, i, y, x, early, segments};
      job.find_segments();
      alignas(64) Tile sums;
      Span tiles{0, job.where().tiles}, rows{0, columns * group.batch};
      if (tiles.end >= threads) tiles = part_of(tiles.end, threads, me);
      else rows = part_of(rows.end, threads, me);
      const int64_t blocks = ceil_div(count_of(rows), kRows);
      for (int64_t j = tiles.begin; j < tiles.end; ++j)
        for (int64_t n = 0; n < blocks; ++n) {
          const Span part = part_of(count_of(rows), blocks, n);
          const int64_t m = rows.begin + part.begin;
          start(job, j, m, count_of(part), sums);
          multiply(count_of(part), job, j, m, sums);
          finish(job, j, m, count_of(part), sums);
        }
    }

    // What is known when row y, or its part from column x on, starts.
    void start_row(int64_t y, int64_t x) const {
      const Sampler& all = group.all;
      const Sampling& s = all.s;
      const int64_t columns = least(s.block, s.width - x);
      if (x > 0) {  // of a single long row: keep what taps reach back to
        for (int64_t i = me; i < s.num_steps; i += threads)
          pass_on(group.value(i, 0, 0), s.steps[i], all.placed[i].stride);
        if (me == 0) pass_on(group.codes(0, 0), s.cache, 1);
      }
      T* map = group.template at<T>(all.layout->condition);
      const Span images = part_of(group.batch, threads, me);
      for (int64_t b = images.begin; b < images.end; ++b)
        for (int64_t c = 0; c < s.condition_channels; ++c) {
          const T* from = static_cast<const T*>(s.condition) +
                          (((group.first + b) * s.condition_channels + c) * s.height + y) * s.width + x;
          for (int64_t n = 0; n < columns; ++n) map[(n * group.batch + b) * all.layout->condition_stride + c] = from[n];
        }
      meet();
      for (int64_t i = 0; i < s.num_steps; ++i) {
        if (s.steps[i].phase != kRow && all.placed[i].partial < 0) continue;
        compute(i, true, y, x, columns);
        meet();
      }
    }

    template <class U, class Cache>
    void pass_on(U* origin, const Cache& cache, int64_t stride) const {
      const int64_t kept = cache.left * group.batch * stride, passed = group.all.s.block * group.batch * stride;
      memmove(origin - kept, origin - kept + passed, kept * sizeof(U));
    }

    void steps(int64_t phase, int64_t y, int64_t x) const {
      for (int64_t i = 0; i < group.all.s.num_steps; ++i)
        if (group.all.s.steps[i].phase == phase) {
          compute(i, false, y, x, 1);
          meet();
        }
    }

    void draw_codes(int64_t y, int64_t x) const {
      const Sampler& all = group.all;
      const Sampling& s = all.s;
      const int64_t last = s.num_steps - 1, position = y * s.width + x, k = s.num_embeddings;
      float* scores = reinterpret_cast<float*>(scratch);
      double* restricted = reinterpret_cast<double*>(scratch + padded((k + kWords) * 4));
      const Span images = part_of(group.batch, threads, me);
      for (int64_t b = images.begin; b < images.end; ++b) {
        const int64_t image = group.first + b, at = (image * s.height + y) * s.width + x;
        const T* logits = group.value(last, y, x) + b * all.placed[last].stride;
        const uint64_t number = uint64_t(s.numbers[image]);
        const Counter counter{uint32_t(position), uint32_t(number), uint32_t(number >> 32), uint32_t(s.seed),
                              uint32_t(s.seed >> 32)};
        int64_t drawn;
        if (s.restrict_to) {
          for (int64_t i = 0; i < k; ++i) restricted[i] = logits[i];
          s.restrict_to(s, restricted, reinterpret_cast<char*>(restricted) + padded(k * 8));
          drawn = draw(restricted, k, s.temperature, counter, scores);
        } else {
          drawn = draw(logits, k, s.temperature, counter, scores);
        }
        s.codes[at] = s.known[at] < 0 ? drawn : s.known[at];
        group.codes(y, x)[b] = int32_t(most(0, s.codes[at]));
      }
      meet();
    }
  };

  void run(int64_t thread, int64_t first, int64_t count) const {
    int64_t g = 0;
    while (part_of(s.threads, s.groups, g).end <= thread) ++g;
    const Span threads = part_of(s.threads, s.groups, g);
    const Group group{*this, g};
    const int64_t me = thread - threads.begin;
    char* scratch = group.template at<char>(layout->scratch) + me * layout->scratch_bytes;
    auto* segments = reinterpret_cast<Segment*>(scratch);
    const Worker worker{group, me, count_of(threads), barriers[g], scratch + layout->segment_bytes, segments};
    for (int64_t position = first; position < first + count; ++position) {
      const int64_t y = position / s.width, x = position % s.width;
      if (x % s.block == 0) worker.start_row(y, x);
      worker.steps(kPosition, y, x);
      worker.draw_codes(y, x);
      worker.steps(kCode, y, x);
    }
  }
};

template <class F>
auto with_sampler(const Sampling& s, F f) {
  switch (s.precision) {
    case Precision::f64: return f(Sampler<Double, double>(s));
    case Precision::bf16: return f(Sampler<Single, Bf16>(s));
    default: return f(Sampler<Single, float>(s));
  }
}

}  // namespace

extern const SamplerKernel sampler_kernel;
const SamplerKernel sampler_kernel{
    [](const Sampling& s) { return with_sampler(s, [](auto sampler) { return sampler.lay_out(false).end; }); },
    [](const Sampling& s) { with_sampler(s, [](auto sampler) { sampler.begin(); }); },
    [](const Sampling& s, int64_t step) { with_sampler(s, [=](auto sampler) { sampler.pack(step); }); },
    [](const Sampling& s, int64_t thread, int64_t first, int64_t count) {
      with_sampler(s, [=](auto sampler) { sampler.run(thread, first, count); });
    },
};

}  // namespace vqfast::VQFAST_ISA
