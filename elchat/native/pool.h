// Threads that share the stages of one forward pass.
//
// Work is taken piece by piece from one counter, so that a thread which lost its core to another
// process slows the rest by one piece and not by its whole share. Who has nothing to do spins for
// some microseconds (the next stage is usually that near) and then sleeps: a core is never kept
// busy waiting, and the kernel may move the thread that is late onto the idle one.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
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

    explicit Pool(int threads) {
        for (int i = 1; i < threads; i++) helpers_.emplace_back([this, i] { help(i); });
    }

    ~Pool() {
        is_closing_.store(true);
        epoch_.fetch_add(1);
        epoch_.notify_all();
        for (auto &helper : helpers_) helper.join();
    }

    int threads() const { return static_cast<int>(helpers_.size()) + 1; }

    // Call job(context, i, thread) once for every i below `pieces`; returns when all are done.
    void run(int pieces, Job job, void *context) {
        if (pieces <= 1 || helpers_.empty()) {
            for (int i = 0; i < pieces; i++) job(context, i, 0);
            return;
        }
        job_ = job;
        context_ = context;
        undone_.store(pieces, std::memory_order_relaxed);
        generation_ = (generation_ + 1) & kGenerationMask;
        ticket_.store(generation_ << 40 | static_cast<uint64_t>(pieces) << 20);
        epoch_.fetch_add(1);
        if (sleepers_.load() > 0) epoch_.notify_all();
        work(0);
        wait_for_others();
    }

    template <class F> void each(int pieces, F &&function) {
        run(
            pieces,
            [](void *context, int piece, int thread) {
                (*static_cast<std::remove_reference_t<F> *>(context))(piece, thread);
            },
            &function);
    }

  private:
    static constexpr int kSpins = 1500;
    static constexpr uint64_t kGenerationMask = (1u << 24) - 1, kFieldMask = (1u << 20) - 1;

    // A ticket holds generation, number of pieces and next piece in one word: a thread that comes
    // late can never take a piece of one job for a piece of the next.
    static bool is_open(uint64_t ticket) {
        return (ticket & kFieldMask) < (ticket >> 20 & kFieldMask);
    }

    void work(int thread) {
        while (is_open(ticket_.load(std::memory_order_relaxed))) {
            uint64_t mine = ticket_.fetch_add(1);
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
            for (int i = 0; i < kSpins && !is_open(ticket_.load()); i++) relax();
            uint32_t epoch = epoch_.load();
            if (is_closing_.load()) return;
            if (is_open(ticket_.load())) {
                work(thread);
                continue;
            }
            sleepers_.fetch_add(1);
            if (!is_open(ticket_.load())) epoch_.wait(epoch);
            sleepers_.fetch_sub(1);
        }
    }

    alignas(64) std::atomic<uint64_t> ticket_{0};
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
