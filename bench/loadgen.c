/* SPDX-License-Identifier: Apache-2.0
 *
 * A load generator that costs little: many kept TLS connections in one thread (epoll, non-blocking OpenSSL).
 *
 * SMTP: connect, EHLO, STARTTLS or implicit TLS, EHLO, AUTH PLAIN; then, over and over, MAIL, RCPT, DATA, content.
 * Each step waits for its reply as smtplib and nodemailer do; --pipelining sends MAIL, RCPT and DATA at once.
 * HTTP: TLS, then POST after POST on the kept connection (HTTP/1.1).
 *
 * Protocol with whoever starts it: prints "READY" when every connection is authenticated, starts sending at the line
 * "GO" on stdin, prints one line of JSON at the end, and keeps its connections until stdin is closed.
 *
 * With --rate R messages become due at R a second whatever the server does (open loop); else each connection sends as
 * fast as it gets replies (closed loop).
 *
 * With --targets FILE message n goes by line n of FILE (and round again): a sender, a space, a recipient.  Each message
 * says in X-Sent-At-Us when its first octet left (Unix microseconds).
 *
 * Build: cc -O2 -o loadgen loadgen.c -lssl -lcrypto
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum step { S_CONNECT, S_TLS, S_BANNER, S_EHLO1, S_STARTTLS, S_EHLO2, S_AUTH, S_IDLE, S_MAIL, S_RCPT, S_DATA, S_DOT, S_HTTP, S_DEAD };

struct conn {
    int fd;
    SSL *ssl;
    int tls;              /* established */
    enum step step;
    char *out;            /* what is still to be written */
    size_t out_len, out_done, out_cap;
    char in[16384];
    size_t in_len;
    long number;
    int64_t due_ns, dot_ns;
    long body_left;       /* HTTP */
    int http_status;
    int want_write;
};

static const char *host = "127.0.0.1", *user = "bench", *password = "", *sender = "bench@example.com", *path = "/";
static const char *prefix = "m", *bearer = "", *recipient = "someone@example.net";
static int port, connections = 20, implicit, pipelining, http, hold_only, deadline_s = 120;
static long messages = 1000, size = 2048;
static double rate;

static SSL_CTX *ctx;
static int ep, timer, ready, dead, done_sending;
static long started, finished, accepted, refused, refused_by_class[10];
static int64_t *dot_latency, *due_latency, go_ns, last_reply_ns;
static char first_refusal[256];
static struct conn *conns;
static struct conn **idle;
static int idle_count;
static char *filler;
static char **senders, **recipients; /* with --targets */
static long target_count;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "loadgen: %s\n", what);
    exit(1);
}

static void put(struct conn *c, const char *data, size_t len) {
    if (c->out_len + len > c->out_cap) {
        c->out_cap = (c->out_len + len) * 2;
        c->out = realloc(c->out, c->out_cap);
        if (!c->out) die("out of memory");
    }
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
}

static void put_text(struct conn *c, const char *text) { put(c, text, strlen(text)); }

static void watch(struct conn *c) {
    struct epoll_event e = {.events = EPOLLIN | (c->want_write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}

static void lose(struct conn *c, const char *why) {
    if (c->step == S_DEAD) return;
    if (!first_refusal[0]) snprintf(first_refusal, sizeof first_refusal, "connection lost: %s (step %d)", why, c->step);
    int in_message = c->step > S_IDLE;
    c->step = S_DEAD;
    close(c->fd);
    dead++;
    if (in_message) {
        finished++;
        refused++;
        refused_by_class[0]++;
    }
    if (dead == connections) die(first_refusal);
}

static void flush_out(struct conn *c) {
    while (c->out_done < c->out_len) {
        ssize_t n;
        if (c->tls) {
            n = SSL_write(c->ssl, c->out + c->out_done, (int)(c->out_len - c->out_done > 1048576 ? 1048576 : c->out_len - c->out_done));
            if (n <= 0) {
                int e = SSL_get_error(c->ssl, (int)n);
                if (e == SSL_ERROR_WANT_WRITE || e == SSL_ERROR_WANT_READ) break;
                lose(c, "write");
                return;
            }
        } else {
            n = write(c->fd, c->out + c->out_done, c->out_len - c->out_done);
            if (n < 0) {
                if (errno == EAGAIN) break;
                lose(c, "write");
                return;
            }
        }
        c->out_done += (size_t)n;
    }
    int want = c->out_done < c->out_len;
    if (!want) c->out_len = c->out_done = 0;
    if (want != c->want_write) {
        c->want_write = want;
        watch(c);
    }
}

static const char *sender_of(long number) { return target_count ? senders[number % target_count] : sender; }

static const char *recipient_of(long number) { return target_count ? recipients[number % target_count] : recipient; }

static void read_targets(const char *name) {
    char from[256], to[256];
    FILE *file = fopen(name, "r");
    if (!file) die("cannot read the file of targets");
    while (fscanf(file, "%255s %255s", from, to) == 2) {
        senders = realloc(senders, (size_t)(target_count + 1) * sizeof *senders);
        recipients = realloc(recipients, (size_t)(target_count + 1) * sizeof *recipients);
        if (!senders || !recipients) die("out of memory");
        senders[target_count] = strdup(from);
        recipients[target_count++] = strdup(to);
    }
    fclose(file);
    if (!target_count) die("the file of targets is empty");
}

static void put_headers(struct conn *c, long number) {
    char text[2048];
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    snprintf(text, sizeof text,
             "From: <%s>\r\nTo: <%s>\r\nSubject: benchmark message %ld\r\nDate: Sun, 22 Nov 2026 12:00:00 +0000\r\n"
             "Message-ID: <%s.%ld@loadgen.example>\r\nX-Test-Id: %s.%ld\r\nX-Sent-At-Us: %lld\r\nMIME-Version: 1.0\r\n"
             "Content-Type: text/plain; charset=utf-8\r\n\r\n",
             sender_of(number), recipient_of(number), number, prefix, number, prefix, number,
             (long long)t.tv_sec * 1000000 + t.tv_nsec / 1000);
    put_text(c, text);
}

static void begin_message(struct conn *c, int64_t due) {
    char text[512];
    c->due_ns = due;
    c->number = ++started;
    if (http) {
        size_t body_len;
        char head[1024];
        char *body = NULL;
        body_len = (size_t)asprintf(&body, "{\"to\":\"%s\",\"subject\":\"benchmark message %ld\",\"text\":\"%.*s\"}", recipient_of(c->number), c->number, (int)size, filler);
        int head_len = snprintf(head, sizeof head,
                                "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                                path, bearer, body_len);
        c->step = S_HTTP;
        c->http_status = 0;
        c->dot_ns = now_ns();
        put(c, head, (size_t)head_len);
        put(c, body, body_len);
        free(body);
        flush_out(c);
        return;
    }
    snprintf(text, sizeof text, "MAIL FROM:<%s>\r\n", sender_of(c->number));
    put_text(c, text);
    c->step = S_MAIL;
    if (pipelining) {
        snprintf(text, sizeof text, "RCPT TO:<%s>\r\nDATA\r\n", recipient_of(c->number));
        put_text(c, text);
    }
    flush_out(c);
}

static void next_or_idle(struct conn *c) {
    c->step = S_IDLE;
    if (rate <= 0 && go_ns && started < messages)
        begin_message(c, now_ns());
    else
        idle[idle_count++] = c;
}

static void end_message(struct conn *c, int code, const char *text) {
    int64_t now = now_ns();
    last_reply_ns = now;
    if (code / 100 == 2) {
        dot_latency[accepted] = now - c->dot_ns;
        due_latency[accepted] = now - c->due_ns;
        accepted++;
    } else {
        refused++;
        refused_by_class[code / 100 % 10]++;
        if (!first_refusal[0]) snprintf(first_refusal, sizeof first_refusal, "%.200s", text);
    }
    finished++;
    next_or_idle(c);
}

static void start_tls(struct conn *c) {
    c->ssl = SSL_new(ctx);
    SSL_set_fd(c->ssl, c->fd);
    SSL_set_connect_state(c->ssl);
    c->step = S_TLS;
}

static void on_reply(struct conn *c, int code, const char *text) {
    char line[1024];
    switch (c->step) {
    case S_BANNER:
        if (code != 220) { lose(c, text); return; }
        put_text(c, "EHLO loadgen.example\r\n");
        c->step = implicit ? S_EHLO2 : S_EHLO1;
        break;
    case S_EHLO1:
        put_text(c, "STARTTLS\r\n");
        c->step = S_STARTTLS;
        break;
    case S_STARTTLS:
        if (code != 220) { lose(c, text); return; }
        start_tls(c);
        return;
    case S_EHLO2: {
        unsigned char raw[512], coded[700];
        size_t ul = strlen(user), pl = strlen(password);
        raw[0] = 0;
        memcpy(raw + 1, user, ul);
        raw[1 + ul] = 0;
        memcpy(raw + 2 + ul, password, pl);
        EVP_EncodeBlock(coded, raw, (int)(2 + ul + pl));
        snprintf(line, sizeof line, "AUTH PLAIN %s\r\n", coded);
        put_text(c, line);
        c->step = S_AUTH;
        break;
    }
    case S_AUTH:
        if (code != 235) { lose(c, text); return; }
        ready++;
        next_or_idle(c);
        return;
    case S_MAIL:
        if (code != 250) { end_message(c, code, text); return; }
        c->step = S_RCPT;
        if (!pipelining) {
            snprintf(line, sizeof line, "RCPT TO:<%s>\r\n", recipient_of(c->number));
            put_text(c, line);
        }
        break;
    case S_RCPT:
        if (code != 250) { end_message(c, code, text); return; }
        c->step = S_DATA;
        if (!pipelining) put_text(c, "DATA\r\n");
        break;
    case S_DATA:
        if (code != 354) { end_message(c, code, text); return; }
        put_headers(c, c->number);
        put(c, filler, (size_t)size);
        put_text(c, "\r\n.\r\n");
        c->step = S_DOT;
        c->dot_ns = now_ns();
        break;
    case S_DOT:
        end_message(c, code, text);
        return;
    default:
        lose(c, text);
        return;
    }
    flush_out(c);
}

static void eat_smtp(struct conn *c) {
    size_t from = 0;
    while (c->step != S_DEAD && c->step != S_TLS) {
        char *nl = memchr(c->in + from, '\n', c->in_len - from);
        if (!nl) break;
        char *line = c->in + from;
        *nl = 0;
        from = (size_t)(nl - c->in) + 1;
        if (strlen(line) >= 4 && line[3] != '-') on_reply(c, atoi(line), line);
    }
    if (c->step == S_DEAD) return;
    memmove(c->in, c->in + from, c->in_len - from);
    c->in_len -= from;
    if (c->in_len == sizeof c->in) lose(c, "reply too long");
}

static void eat_http(struct conn *c) {
    while (c->step == S_HTTP) {
        if (!c->http_status) {
            char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
            if (!end) break;
            *end = 0;
            c->http_status = atoi(c->in + 9);
            char *length = strcasestr(c->in, "content-length:");
            c->body_left = length ? atol(length + 15) : 0;
            size_t used = (size_t)(end - c->in) + 4;
            memmove(c->in, c->in + used, c->in_len - used);
            c->in_len -= used;
        }
        if ((long)c->in_len < c->body_left) break;
        char text[256];
        snprintf(text, sizeof text, "%d %.*s", c->http_status, (int)(c->body_left > 200 ? 200 : c->body_left), c->in);
        memmove(c->in, c->in + c->body_left, c->in_len - (size_t)c->body_left);
        c->in_len -= (size_t)c->body_left;
        end_message(c, c->http_status, text);
    }
}

static void on_readable(struct conn *c) {
    for (;;) {
        ssize_t n;
        if (c->step == S_TLS) {
            int r = SSL_do_handshake(c->ssl);
            if (r != 1) {
                int e = SSL_get_error(c->ssl, r);
                if (e == SSL_ERROR_WANT_READ) return;
                if (e == SSL_ERROR_WANT_WRITE) { c->want_write = 1; watch(c); return; }
                lose(c, "handshake");
                return;
            }
            c->tls = 1;
            if (http) {
                ready++;
                next_or_idle(c);
                return;
            }
            if (implicit) c->step = S_BANNER;
            else {
                c->step = S_EHLO2;
                put_text(c, "EHLO loadgen.example\r\n");
                flush_out(c);
            }
        }
        if (c->tls) {
            n = SSL_read(c->ssl, c->in + c->in_len, (int)(sizeof c->in - c->in_len));
            if (n <= 0) {
                int e = SSL_get_error(c->ssl, (int)n);
                if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE) return;
                lose(c, "closed");
                return;
            }
        } else {
            n = read(c->fd, c->in + c->in_len, sizeof c->in - c->in_len);
            if (n < 0 && errno == EAGAIN) return;
            if (n <= 0) {
                lose(c, "closed");
                return;
            }
        }
        c->in_len += (size_t)n;
        if (http) eat_http(c); else eat_smtp(c);
        if (c->step == S_DEAD) return;
        if (!c->tls && c->step != S_TLS) return; /* level-triggered: come again */
    }
}

static void open_connection(struct conn *c) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, host, &a.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof a) != 0) die("cannot connect");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
    c->step = S_BANNER;
    if (implicit || http) {
        start_tls(c);
        on_readable(c);
    }
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static double percentile(int64_t *values, double share) {
    if (!accepted) return 0;
    long at = (long)((double)(accepted - 1) * share + 0.5);
    return (double)values[at] / 1e6;
}

static void pump(int timeout_ms) {
    struct epoll_event events[256];
    int n = epoll_wait(ep, events, 256, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (!c) { /* the next message is due */
            uint64_t ticks;
            if (read(timer, &ticks, sizeof ticks) < 0) continue;
            continue;
        }
        if (c->step == S_DEAD) continue;
        if (events[i].events & EPOLLOUT) {
            if (c->step == S_TLS) { c->want_write = 0; watch(c); }
            else flush_out(c);
        }
        if (c->step != S_DEAD && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c);
    }
}

static double cpu_ms(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e3 + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e3;
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"connections", 1, 0, 'c'}, {"messages", 1, 0, 'm'}, {"size", 1, 0, 's'},
        {"user", 1, 0, 'u'}, {"implicit", 0, 0, 'i'}, {"pipelining", 0, 0, 'P'}, {"sender", 1, 0, 'f'}, {"recipient", 1, 0, 't'},
        {"rate", 1, 0, 'r'}, {"prefix", 1, 0, 'x'}, {"http", 1, 0, 'H'}, {"hold", 0, 0, 'o'}, {"deadline-s", 1, 0, 'd'},
        {"targets", 1, 0, 'T'}, {0, 0, 0, 0}};
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) switch (o) {
        case 'h': host = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'c': connections = atoi(optarg); break;
        case 'm': messages = atol(optarg); break;
        case 's': size = atol(optarg); break;
        case 'u': user = optarg; break;
        case 'i': implicit = 1; break;
        case 'P': pipelining = 1; break;
        case 'f': sender = optarg; break;
        case 't': recipient = optarg; break;
        case 'r': rate = atof(optarg); break;
        case 'x': prefix = optarg; break;
        case 'H': http = 1; path = optarg; break;
        case 'o': hold_only = 1; break;
        case 'd': deadline_s = atoi(optarg); break;
        case 'T': read_targets(optarg); break;
        default: return 2;
    }
    password = getenv("LOADGEN_PASSWORD") ? getenv("LOADGEN_PASSWORD") : ""; /* not in the process list */
    bearer = password;
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    if (http) SSL_CTX_set_alpn_protos(ctx, (const unsigned char *)"\x08http/1.1", 9);
    ep = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event timer_event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(ep, EPOLL_CTL_ADD, timer, &timer_event);
    conns = calloc((size_t)connections, sizeof *conns);
    idle = calloc((size_t)connections + 1, sizeof *idle);
    dot_latency = calloc((size_t)messages + 1, sizeof *dot_latency);
    due_latency = calloc((size_t)messages + 1, sizeof *due_latency);
    filler = malloc((size_t)size + 1);
    for (long i = 0; i < size; i++) filler[i] = http ? (i % 72 == 71 ? ' ' : 'a' + (char)(i % 26)) : i % 74 == 72 ? '\r' : i % 74 == 73 ? '\n' : 'a' + (char)(i % 26);
    if (!http && size && filler[size - 1] == '\r') filler[size - 1] = 'x';
    filler[size] = 0;
    /* A few at a time: opening a thousand at once would only test the listen queue. */
    int64_t give_up = now_ns() + (int64_t)deadline_s * 1000000000;
    int opened = 0;
    while (ready + dead < connections) {
        while (opened < connections && opened - ready - dead < 32) open_connection(&conns[opened++]);
        pump(100);
        if (now_ns() > give_up) die("connections not ready in time");
    }
    printf("READY\n");
    fflush(stdout);
    char line[16];
    if (!fgets(line, sizeof line, stdin)) return 1;
    double cpu_before = cpu_ms();
    if (!hold_only) {
        go_ns = last_reply_ns = now_ns();
        give_up = go_ns + (int64_t)deadline_s * 1000000000;
        if (rate <= 0)
            while (idle_count && started < messages) begin_message(idle[--idle_count], now_ns());
        while (finished < messages && !done_sending) {
            if (rate > 0) {
                int64_t now = now_ns();
                while (started < messages) {
                    int64_t due = go_ns + (int64_t)((double)started / rate * 1e9);
                    if (due > now) {
                        struct itimerspec at = {.it_value = {due / 1000000000, due % 1000000000}};
                        timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
                        break;
                    }
                    if (!idle_count) break;
                    begin_message(idle[--idle_count], due);
                }
            }
            pump(1000);
            if (now_ns() > give_up) break;
        }
    }
    double cpu = cpu_ms() - cpu_before;
    qsort(dot_latency, (size_t)accepted, sizeof *dot_latency, compare);
    qsort(due_latency, (size_t)accepted, sizeof *due_latency, compare);
    for (char *p = first_refusal; *p; p++) if (*p == '"' || *p == '\\' || (unsigned char)*p < 32) *p = ' ';
    printf("{\"accepted\":%ld,\"refused\":%ld,\"unanswered\":%ld,\"lost_connections\":%d,\"elapsed_s\":%.6f,\"cpu_ms\":%.3f,"
           "\"dot_p50_ms\":%.3f,\"dot_p90_ms\":%.3f,\"dot_p99_ms\":%.3f,\"dot_max_ms\":%.3f,\"due_p50_ms\":%.3f,\"due_p99_ms\":%.3f,"
           "\"refused_4xx\":%ld,\"refused_5xx\":%ld,\"first_refusal\":\"%s\"}\n",
           accepted, refused, messages - finished, dead, (double)(last_reply_ns - go_ns) / 1e9, cpu, percentile(dot_latency, .5),
           percentile(dot_latency, .9), percentile(dot_latency, .99), percentile(dot_latency, 1), percentile(due_latency, .5),
           percentile(due_latency, .99), refused_by_class[4], refused_by_class[5], first_refusal);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {}
    return 0;
}
