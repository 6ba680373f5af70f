// Centres shared among threads, and errors carried out of them to Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __SSE2__
#include <immintrin.h>
#endif

constexpr int MESSAGE_SIZE = 256;  // bytes of a message; the same in build.py
enum Status { DONE, OUT_OF_MEMORY, FAILED };

// Runs f. An exception becomes a status and a message, because none may pass through C into Python.
template <class F> int guarded(char* message, F f) noexcept {
    const auto say = [&](const char* text) { std::snprintf(message, MESSAGE_SIZE, "%s", text); };
    try {
        f();
        return DONE;
    } catch (const std::bad_alloc&) {
        return say("there is not enough memory"), OUT_OF_MEMORY;
    } catch (const std::length_error&) {
        return say("an array would be larger than any memory"), OUT_OF_MEMORY;
    } catch (const std::exception& error) {
        return say(error.what()), FAILED;
    } catch (...) {
        return say("unknown exception"), FAILED;
    }
}

inline void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// While it exists, numbers below the smallest normal one count as 0 in this thread. A product with such a number takes a
// processor a hundred times longer, and networks make more and more of them as they learn: the sigmoid of SiLU is that
// small where its argument is below −87, as every seventh is in a network of many elements after a long training.
class FlushedToZero {
#if defined(__SSE2__)
    static constexpr unsigned RESULTS_AND_ARGUMENTS = 0x8040;
    const unsigned before = _mm_getcsr();

   public:
    FlushedToZero() { _mm_setcsr(before | RESULTS_AND_ARGUMENTS); }
    ~FlushedToZero() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    static constexpr uint64_t RESULTS_AND_ARGUMENTS = 1 << 24;
    uint64_t before;

    static void set(uint64_t control) { asm volatile("msr fpcr, %0" : : "r"(control)); }

   public:
    FlushedToZero() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        set(before | RESULTS_AND_ARGUMENTS);
    }
    ~FlushedToZero() { set(before); }
#else
   public:
    FlushedToZero() {}  // a destructor's absence would make the variable look unused
    ~FlushedToZero() {}
#endif
    FlushedToZero(const FlushedToZero&) = delete;
};

// work(t) for all t < n_threads, each in its thread. The first exception is thrown again once all of them have ended.
template <class F> void in_threads(int n_threads, F work) {
    std::vector<std::exception_ptr> errors(n_threads);
    const auto caught = [&](int t) {
        const FlushedToZero flushed;
        try {
            work(t);
        } catch (...) {
            errors[t] = std::current_exception();
        }
    };
#ifdef _OPENMP
    // PyTorch's own threads, which would otherwise wait for work, spinning, on the cores that ours need.
#pragma omp parallel for schedule(static, 1) num_threads(n_threads)
    for (int t = 0; t < n_threads; t++) caught(t);
#else
    std::vector<std::thread> threads;
    threads.reserve(n_threads);
    for (int t = 1; t < n_threads; t++) try {
            threads.emplace_back(caught, t);
        } catch (const std::system_error&) {
            caught(t);  // the system gives no more threads
        }
    caught(0);
    for (std::thread& thread : threads) thread.join();
#endif
    for (const std::exception_ptr& error : errors)
        if (error) std::rethrow_exception(error);
}

// Where part t of the centres begins, when each of n_parts parts has consecutive centres and about as many edges.
inline int64_t part_start(const int64_t* first_edge, int64_t n_centers, int t, int n_parts) {
    if (t == n_parts) return n_centers;
    return std::lower_bound(first_edge, first_edge + n_centers, first_edge[n_centers] / n_parts * t) - first_edge;
}

// Throws unless first_edge are the ends of consecutive, possibly empty runs of edges that begin with edge 0.
inline void check_edges(const int64_t* first_edge, int64_t n_centers) {
    require(n_centers >= 0 && n_centers < INT32_MAX, "the number of centres is not between 0 and 2^31");
    require(first_edge[0] == 0 && std::is_sorted(first_edge, first_edge + n_centers + 1),
            "edges are not sorted by centre");
}
