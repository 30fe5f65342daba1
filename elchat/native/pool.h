// Threads that share the stages of one forward pass.
//
// Each thread has a stretch of the pieces and, once through it, takes from the others': one that
// lost its core to another process slows the rest by one piece and not by its whole share. Who has
// nothing to do spins for some microseconds (the next stage is usually that near) and then sleeps:
// a core is never kept busy waiting, and the kernel may move the thread that is late onto the idle
// one.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace elchat {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
  public:
    using Job = void (*)(void *context, int piece, int thread);

    explicit Pool(int threads) : lanes_(threads > 1 ? threads : 1) {
        for (int i = 1; i < threads; i++) helpers_.emplace_back([this, i] { help(i); });
    }

    ~Pool() {
        is_closing_.store(true);
        epoch_.fetch_add(1);
        epoch_.notify_all();
        for (auto &helper : helpers_) helper.join();
    }

    int threads() const { return static_cast<int>(lanes_.size()); }

    // Call job(context, i, thread) once for every i below `pieces`; returns when all are done.
    // Each thread begins with a stretch of its own, the same in every job of as many pieces: what
    // it wrote in one stage is in its caches in the next. Then it helps with the others'.
    void run(int pieces, Job job, void *context) {
        if (pieces <= 1 || helpers_.empty()) {
            for (int i = 0; i < pieces; i++) job(context, i, 0);
            return;
        }
        job_ = job;
        context_ = context;
        undone_.store(pieces, std::memory_order_relaxed);
        generation_ = (generation_ + 1) & kGenerationMask;
        const uint64_t n = threads(), count = pieces;
        for (uint64_t i = 0; i < n; i++)
            lanes_[i].ticket.store(generation_ << 40 | count * (i + 1) / n << 20 | count * i / n);
        epoch_.fetch_add(1);
        if (sleepers_.load() > 0) epoch_.notify_all();
        work(0);
        wait_for_others();
    }

    // The function is copied, to lines of memory that nobody writes meanwhile: on the stack of the
    // caller, whose own share of the work is under way, each of its lines would go to and fro
    // between the cores. For the same reason it should hold what it needs by value.
    template <class F> void each(int pieces, F function) {
        struct alignas(64) {
            F call;
        } job{std::move(function)};
        run(
            pieces,
            [](void *context, int piece, int thread) {
                static_cast<decltype(job) *>(context)->call(piece, thread);
            },
            &job);
    }

  private:
    static constexpr int kSpins = 1500;
    static constexpr uint64_t kGenerationMask = (1u << 24) - 1, kFieldMask = (1u << 20) - 1;

    // A ticket holds generation, end and next piece of a stretch in one word: a thread that comes
    // late can never take a piece of one job for a piece of the next.
    static bool is_open(uint64_t ticket) {
        return (ticket & kFieldMask) < (ticket >> 20 & kFieldMask);
    }

    struct alignas(64) Lane {
        std::atomic<uint64_t> ticket{0};
    };

    bool is_any_open() const {
        for (const Lane &lane : lanes_)
            if (is_open(lane.ticket.load())) return true;
        return false;
    }

    void work(int thread) {
        for (int i = 0; i < threads(); i++) work_lane(lanes_[(thread + i) % threads()], thread);
    }

    void work_lane(Lane &lane, int thread) {
        while (is_open(lane.ticket.load(std::memory_order_relaxed))) {
            uint64_t mine = lane.ticket.fetch_add(1);
            if (!is_open(mine)) return;
            job_(context_, static_cast<int>(mine & kFieldMask), thread);
            if (undone_.fetch_sub(1) == 1) undone_.notify_one();
        }
    }

    void wait_for_others() {
        for (int i = 0; i < kSpins; i++) {
            if (undone_.load() == 0) return;
            relax();
        }
        for (int left; (left = undone_.load()) != 0;) undone_.wait(left);
    }

    void help(int thread) {
        while (true) {
            for (int i = 0; i < kSpins && !is_any_open(); i++) relax();
            uint32_t epoch = epoch_.load();
            if (is_closing_.load()) return;
            if (is_any_open()) {
                work(thread);
                continue;
            }
            sleepers_.fetch_add(1);
            if (!is_any_open()) epoch_.wait(epoch);
            sleepers_.fetch_sub(1);
        }
    }

    std::vector<Lane> lanes_;
    alignas(64) std::atomic<int> undone_{0};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> is_closing_{false};
    Job job_ = nullptr;
    void *context_ = nullptr;
    uint64_t generation_ = 0;
    std::vector<std::thread> helpers_;
};

}  // namespace elchat
