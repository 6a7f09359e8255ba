// SPDX-License-Identifier: Apache-2.0
// Sends raw messages with nodemailer.  Reads one JSON document from standard input:
//   {port, secure, user, password, pool, messages: [{from, to: [..], raw: base64}]}
// and prints one: [{ok, response?, accepted?, code?, responseCode?, message?}], one entry for each message, in order.
import nodemailer from "nodemailer";
import { text } from "node:stream/consumers";

const input = JSON.parse(await text(process.stdin));
const transport = nodemailer.createTransport({
  host: "127.0.0.1",
  port: input.port,
  secure: input.secure,
  requireTLS: !input.secure,
  pool: input.pool,
  maxConnections: 3,
  auth: { user: input.user, pass: input.password },
  tls: { rejectUnauthorized: false },
});

const send = async ({ from, to, raw }) => {
  try {
    const info = await transport.sendMail({ envelope: { from, to }, raw: Buffer.from(raw, "base64") });
    return { ok: true, response: info.response, accepted: info.accepted };
  } catch (error) {
    return { ok: false, code: error.code, responseCode: error.responseCode, message: error.message };
  }
};

let results;
if (input.pool) {
  results = await Promise.all(input.messages.map(send));
} else {
  results = [];
  for (const message of input.messages) results.push(await send(message));
}
transport.close();
process.stdout.write(JSON.stringify(results) + "\n");
