// Connects a matching engine to fundsvc: passes its events on, and passes ADL rounds to it.
//
// Reads events from standard input, one JSON object per line, without `seq` and `prevSeq`. Numbers each event, writes it to the
// journal, then sends it. After a restart or a lost connection it resends what the service has not settled. Prints each ADL
// round once; the engine answers it with adlFill, position and adlEnd.
//
//     apt-get install g++ libhiredis-dev nlohmann-json3-dev libcurl4-openssl-dev zlib1g-dev
//     g++ -std=c++17 -O2 producer.cpp -o producer -lhiredis -lcurl -lz -pthread
//     FUNDSVC_STREAM=redis://localhost:6379 FUNDSVC_API=http://localhost:8080 FUNDSVC_TOKEN=... ./producer journal.ndjson

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <curl/curl.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <nlohmann/json.hpp>
#include <unistd.h>
#include <zlib.h>

using json = nlohmann::json;
using Events = std::vector<json>;
using Reply = std::unique_ptr<redisReply, decltype(&freeReplyObject)>;

const std::set<std::string> NUMBERED{"fill", "takeover", "unwind", "settle", "adlFill", "adlEnd"};
const std::set<std::string> STATES{"mark", "position"};
const size_t EVENTS_PER_MESSAGE = 100;
const std::chrono::seconds RETRY{1};

std::string setting(const char* name) {
    const char* value = std::getenv(name);
    if (!value) throw std::invalid_argument(std::string(name) + " is not set");
    return value;
}

int64_t now_ms() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

// A connection to Valkey or Redis. Each call throws without a server; the next one connects again.
class Stream {
public:
    Reply call(const std::vector<std::string>& words) {
        if (!context_) connect();
        return command(words);
    }

private:
    std::unique_ptr<redisContext, decltype(&redisFree)> context_{nullptr, redisFree};

    // URLs such as redis://:password@host:6379 or unix://:password@/path
    void connect() {
        static const std::regex pattern("(redis|unix)://(?::(.*)@)?([^:/]*)(?::([0-9]+))?(/.*)?");
        std::smatch parts;
        const std::string url = setting("FUNDSVC_STREAM");
        if (!std::regex_match(url, parts, pattern)) throw std::invalid_argument("FUNDSVC_STREAM is not a URL of a stream server");
        context_.reset(parts[1] == "unix" ? redisConnectUnix(parts[5].str().c_str())
                                          : redisConnect(parts[3].str().c_str(), parts[4].matched ? std::stoi(parts[4]) : 6379));
        if (parts[2].matched) command({"AUTH", parts[2]});
    }

    Reply command(const std::vector<std::string>& words) {
        std::vector<const char*> arguments;
        std::vector<size_t> lengths;
        for (const auto& word : words) arguments.push_back(word.data()), lengths.push_back(word.size());
        redisReply* found = nullptr;
        if (context_ && !context_->err)
            found = static_cast<redisReply*>(redisCommandArgv(context_.get(), words.size(), arguments.data(), lengths.data()));
        Reply reply(found, freeReplyObject);
        if (reply && reply->type != REDIS_REPLY_ERROR) return reply;
        const std::string reason = reply ? reply->str : context_ ? context_->errstr : "out of memory";
        context_.reset();
        throw std::runtime_error(reason);
    }
};

// Returns what the service has settled.
json read_cursor() {
    std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> request(curl_easy_init(), curl_easy_cleanup);
    std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(
        curl_slist_append(nullptr, ("Authorization: Bearer " + setting("FUNDSVC_TOKEN")).c_str()), curl_slist_free_all);
    std::string body;
    auto append = +[](char* part, size_t size, size_t count, std::string* whole) {
        whole->append(part, size * count);
        return size * count;
    };
    curl_easy_setopt(request.get(), CURLOPT_URL, (setting("FUNDSVC_API") + "/api/v1/ingest/cursor").c_str());
    curl_easy_setopt(request.get(), CURLOPT_HTTPHEADER, headers.get());
    curl_easy_setopt(request.get(), CURLOPT_TIMEOUT, 10L);
    curl_easy_setopt(request.get(), CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(request.get(), CURLOPT_WRITEFUNCTION, append);
    curl_easy_setopt(request.get(), CURLOPT_WRITEDATA, &body);
    const CURLcode code = curl_easy_perform(request.get());
    if (code != CURLE_OK) throw std::runtime_error(curl_easy_strerror(code));
    return json::parse(body)["data"];
}

// Numbers, journals and sends events. `mutex_` keeps the order of the journal in the streams.
class Producer {
public:
    explicit Producer(const char* path) {
        std::ifstream lines(path);
        for (std::string line; std::getline(lines, line);) {
            events_.push_back(json::parse(line));
            remember(events_.back());
        }
        journal_ = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (journal_ < 0) throw std::runtime_error(std::string("cannot write ") + path);
        resume();
    }

    // Numbers an event, writes it to the journal, and sends it. It is not lost if sending fails.
    void emit(json event) {
        std::lock_guard lock(mutex_);
        Events events{std::move(event)};
        record(events);
        try {
            send(events);
        } catch (const std::runtime_error&) {
            resume();
        }
    }

    // Acknowledges and prints each ADL round once.
    void pass_rounds() {
        std::map<std::string, std::string> after;
        for (uint64_t partition = 0; partition < partitions_; ++partition)
            after["fundsvc:{" + std::to_string(partition) + "}:adl"] = "0-0";
        for (Stream reader;;) {
            try {
                std::vector<std::string> words{"XREAD", "BLOCK", "1000", "STREAMS"};
                for (const auto& [key, id] : after) words.push_back(key);
                for (const auto& [key, id] : after) words.push_back(id);
                const Reply found = reader.call(words);
                for (size_t place = 0; place < found->elements; ++place) {
                    const redisReply *key = found->element[place]->element[0], *messages = found->element[place]->element[1];
                    for (size_t number = 0; number < messages->elements; ++number) {
                        const redisReply *id = messages->element[number]->element[0], *fields = messages->element[number]->element[1];
                        after[key->str] = id->str;
                        pass_round(json::parse(fields->element[1]->str));
                    }
                }
            } catch (const std::runtime_error&) {
                std::lock_guard lock(mutex_);
                resume();
            }
        }
    }

private:
    Stream stream_;
    std::mutex mutex_;
    int journal_;
    Events events_;
    uint64_t partitions_ = 0;
    int64_t epoch_ = 0;                                         // the stream epoch of the last cursor
    std::map<std::pair<std::string, bool>, int64_t> sequences_; // the last ones: of numbered events, and of marks and positions
    std::map<std::string, std::map<std::pair<std::string, std::string>, json>> positions_; // by symbol, account and side
    std::set<std::tuple<std::string, int64_t, int64_t>> rounds_;                           // a round may be announced again

    // Updates the memory with an event of the journal.
    void remember(const json& event) {
        const std::string kind = event["type"], symbol = event.value("symbol", "");
        if (event.contains("seq")) sequences_[{symbol, STATES.count(kind) > 0}] = event["seq"];
        if (kind == "position") {
            positions_[symbol][{event["account"], event.value("positionSide", "BOTH")}] = event;
        } else if (kind == "adlAck") {
            rounds_.insert({symbol, event["adl"], event["round"]});
        } else if (kind == "settle") { // ends the contract; in its next generation the numbers of orders begin at 1 again
            positions_.erase(symbol);
            rounds_.erase(rounds_.lower_bound({symbol, 0, 0}), rounds_.lower_bound({symbol + '\0', 0, 0}));
        }
    }

    // Numbers events and writes them to the journal.
    void record(Events& events) {
        for (json& event : events) {
            const std::string kind = event["type"];
            const bool numbered = NUMBERED.count(kind), state = STATES.count(kind);
            const int64_t before = sequences_[{event.value("symbol", ""), state}];
            if (numbered) event["prevSeq"] = before;
            if (numbered || state) event["seq"] = before + 1;
            remember(event);
            events_.push_back(event);
            const std::string line = event.dump() + "\n";
            if (write(journal_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) std::abort();
        }
        if (fsync(journal_)) std::abort();
    }

    // Appends events to the streams of their partitions, in order.
    void send(const Events& events) {
        std::map<uint64_t, json> routed;
        for (const json& event : events)
            for (uint64_t partition : partitions_of(event)) {
                json& run = routed[partition];
                run.push_back(event);
                if (run.size() == EVENTS_PER_MESSAGE) append(partition, run), run.clear();
            }
        for (const auto& [partition, run] : routed)
            if (!run.empty()) append(partition, run);
    }

    void append(uint64_t partition, const json& run) {
        stream_.call({"XADD", "fundsvc:{" + std::to_string(partition) + "}:in", "*", "json", run.dump()});
    }

    // Returns the partition of an event's contract; a rate belongs to all partitions.
    std::vector<uint64_t> partitions_of(const json& event) {
        std::vector<uint64_t> all;
        if (event["type"] == "rate") {
            for (uint64_t partition = 0; partition < partitions_; ++partition) all.push_back(partition);
            return all;
        }
        const std::string symbol = event["type"] == "contract" ? event["contract"]["symbol"] : event["symbol"];
        return {crc32(0, reinterpret_cast<const Bytef*>(symbol.data()), symbol.size()) % partitions_};
    }

    // Sends everything that is not settled again; retries until that succeeds.
    //
    // Marks and positions have sequences of their own, so the service ignores those that it knows. If the stream may have lost
    // events, snapshots make the books complete.
    void resume() {
        for (;; std::this_thread::sleep_for(RETRY)) {
            try {
                const json cursor = read_cursor();
                partitions_ = cursor["partitions"].size();
                std::map<std::string, int64_t> settled;
                for (const json& contract : cursor["contracts"]) settled[contract["symbol"]] = contract["seq"];
                Events unsettled;
                for (const json& event : events_)
                    if (!NUMBERED.count(event["type"]) || event["seq"] > settled[event["symbol"]]) unsettled.push_back(event);
                send(unsettled);
                if (cursor["streamEpoch"] != epoch_)
                    for (const auto& [symbol, positions] : positions_) send(snapshot(symbol));
                epoch_ = cursor["streamEpoch"];
                return;
            } catch (const std::runtime_error& fault) {
                std::cerr << fault.what() << ": retries in " << RETRY.count() << " s" << std::endl;
            }
        }
    }

    // Returns a snapshot of a contract's positions. The journal contains only the positions: an old snapshot that is sent again
    // would close later positions.
    Events snapshot(const std::string& symbol) {
        const int64_t ts = now_ms();
        Events positions;
        for (const auto& [key, position] : positions_[symbol])
            if (position["lots"] != 0) positions.push_back(position), positions.back()["ts"] = ts;
        record(positions);
        Events whole{{{"type", "snapshot"}, {"symbol", symbol}, {"phase", "begin"}, {"ts", ts}}};
        whole.insert(whole.end(), positions.begin(), positions.end());
        whole.push_back({{"type", "snapshot"}, {"symbol", symbol}, {"phase", "end"}, {"ts", ts}});
        return whole;
    }

    // Acknowledges and prints a round, unless it is known. The journal remembers it by its acknowledgement.
    void pass_round(const json& announced) {
        const json &symbol = announced["symbol"], &adl = announced["adl"], &round = announced["round"];
        {
            std::lock_guard lock(mutex_);
            if (rounds_.count({symbol, adl, round})) return;
        }
        emit({{"type", "adlAck"}, {"symbol", symbol}, {"adl", adl}, {"round", round}, {"ts", now_ms()}});
        std::cout << announced.dump() << std::endl;
    }
};

int main(int, char** arguments) {
    std::signal(SIGPIPE, SIG_IGN); // a write to a closed connection fails instead
    curl_global_init(CURL_GLOBAL_DEFAULT);
    Producer producer(arguments[1]);
    std::thread([&] { producer.pass_rounds(); }).detach();
    for (std::string line; std::getline(std::cin, line);) producer.emit(json::parse(line));
    std::_Exit(0);
}
