// The search of residual stages, block by block.
#pragma once

#include <algorithm>
#include <vector>

#include "nearest/host_codebooks.h"

namespace vqfast {

using Pointers = std::vector<const void*>;

// Finds the codes of all stages. Each block of vectors goes through all of them before the next is read, so that its
// residuals stay in cache.
class Stages {
 public:
  // vectors: their number; each has d channels, in the precision of the codes. extra_channels: other numbers of a
  // vector that are needed in cache. codes: of each stage, (k, d) contiguous. found: (vectors, stages), the result.
  Stages(
      const NearestKernel& kernel, Precision precision, int64_t vectors, int64_t d, int64_t k, int64_t extra_channels,
      const Pointers& codes, int64_t* found)
      : kernel_(kernel),
        stages_(int64_t(codes.size())),
        found_(found),
        threads_(threads_for(double(vectors) * double(stages_) * double(k + extra_channels) * double(d))),
        problem_{
            .precision = precision,
            .d = d,
            .d_stride = 1,
            .k = k,
            .vectors = vectors,
            .num_books = 1,
            .extra_channels = extra_channels},
        codebooks_(planned(codes)),
        bytes_(kernel.scratch_bytes(problem_)),
        scratch_(threads_ * bytes_) {}

  int64_t threads() const { return threads_; }
  int64_t max_block() const { return problem_.max_block; }  // vectors of the largest block

  // The vectors of part number `part` of `parts`, which are made of whole tiles.
  Span part(int64_t parts, int64_t part) const {
    NearestProblem parted = problem_;
    parted.blocks = parts;
    return vectors_in(parted, part);
  }
  // Whether each thread searches whole parts, and all threads as many.
  bool whole(int64_t parts) const { return parts % threads_ == 0 && problem_.blocks % threads_ == 0; }

  // path_of(thread) makes a path for a thread, which is told of each block: path.begin(vectors); then for each stage
  // path.enter(stage, problem, axes), which says where the stage's vectors are (`axes` has room for two), and
  // path.leave(stage) once their indices are found; at last path.end().
  template <class PathOf>
  void search(const PathOf& path_of) {
    for_parts(threads_, problem_.blocks, [&](int64_t thread, Span blocks) {
      codebooks_.prepare(problem_);
      auto path = path_of(thread);
      std::vector<int64_t> packing(stages_, problem_.packing);  // with which each stage should start
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const Span here = vectors_in(problem_, block);
        path.begin(here);
        for (int64_t stage = 0; stage < stages_; ++stage) {
          NearestProblem one = problem_;
          one.vectors = count_of(here), one.blocks = 1, one.packing = packing[stage];
          one.out = found_ + here.begin * stages_ + stage;
          Axis axes[2];
          one.axes = axes;
          path.enter(stage, one, axes);
          const int64_t book = problem_.num_books > 1 ? stage : 0;
          packing[stage] = kernel_.search(one, {book, book + 1}, scratch_.data() + thread * bytes_);
          path.leave(stage);
        }
        path.end();
      }
    });
  }

 private:
  // Plans the search. If all stages have the same codebook, it is one.
  Codebooks planned(const Pointers& codes) {
    kernel_.plan(problem_, threads_, false);
    const bool one = size_t(std::count(codes.begin(), codes.end(), codes[0])) == codes.size();
    problem_.num_books = one ? 1 : stages_;
    return Codebooks(kernel_, problem_, one ? Pointers(1, codes[0]) : codes, threads_);
  }

  const NearestKernel& kernel_;
  int64_t stages_;
  int64_t* found_;
  int64_t threads_;
  NearestProblem problem_;
  Codebooks codebooks_;
  int64_t bytes_;
  Buffer<char> scratch_;
};

}  // namespace vqfast
