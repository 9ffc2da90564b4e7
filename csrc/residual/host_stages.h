// The codes that residual stages find, each for what the ones before it left over.
#pragma once

#include <algorithm>
#include <vector>

#include "nearest/host_codebooks.h"

namespace vqfast {

using Pointers = std::vector<const void*>;

// A block of vectors after another goes through all stages, in cache from the first to the last.
class Stages {
 public:
  // rows: vectors of d channels, in the type of the codes; beside: other numbers of each that are wanted in cache;
  // codes: each stage's, (k, d); found: (rows, stages).
  Stages(
      const Kernel& kernel, Type type, int64_t rows, int64_t d, int64_t k, int64_t beside, const Pointers& codes,
      int64_t* found)
      : kernel_(kernel),
        stages_(int64_t(codes.size())),
        found_(found),
        threads_(threads_for(double(rows) * double(stages_) * double(k + beside) * double(d))),
        problem_{.type = type, .d = d, .d_stride = 1, .k = k, .rows = rows, .num_books = 1, .beside = beside},
        books_(planned(codes)),
        bytes_(kernel.scratch(problem_)),
        scratch_(threads_ * bytes_) {}

  int64_t threads() const { return threads_; }
  int64_t block() const { return problem_.block; }  // vectors, at the most

  // The vectors of one of `parts` even parts.
  Span vectors_of(int64_t parts, int64_t part) const {
    Problem parted = problem_;
    parted.blocks = parts;
    return rows_of(parted, part);
  }
  // Whether each thread searches whole parts, as many as another.
  bool whole(int64_t parts) const { return parts % threads_ == 0 && problem_.blocks % threads_ == 0; }

  // way_of(thread): makes each stage's vectors, and follows what is found for them.
  template <class Ways>
  void search(const Ways& way_of) {
    for_parts(threads_, problem_.blocks, [&](int64_t part, Span blocks) {
      books_.prepare(problem_);
      auto way = way_of(part);
      std::vector<int64_t> per(stages_, problem_.per);  // what has paid so far
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const Span here = rows_of(problem_, block);
        way.begin(here);
        for (int64_t stage = 0; stage < stages_; ++stage) {
          Problem one = problem_;
          one.rows = count_of(here), one.blocks = 1, one.per = per[stage];
          one.out = found_ + here.begin * stages_ + stage;
          Axis axes[2];
          one.axes = axes;
          way.enter(stage, one, axes);
          const int64_t book = problem_.num_books > 1 ? stage : 0;
          per[stage] = kernel_.search(one, {book, book + 1}, scratch_.data() + part * bytes_);
          way.leave(stage);
        }
        way.end();
      }
    });
  }

 private:
  // One codebook for all stages stays one.
  Books planned(const Pointers& codes) {
    kernel_.plan(problem_, threads_, false);
    const bool one = size_t(std::count(codes.begin(), codes.end(), codes[0])) == codes.size();
    problem_.num_books = one ? 1 : stages_;
    return Books(kernel_, problem_, one ? Pointers(1, codes[0]) : codes, threads_);
  }

  const Kernel& kernel_;
  int64_t stages_;
  int64_t* found_;
  int64_t threads_;
  Problem problem_;
  Books books_;
  int64_t bytes_;
  Buffer<char> scratch_;
};

}  // namespace vqfast
