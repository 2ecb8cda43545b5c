// Speak from Node, and get sound back: npm install, then node speak.mjs [ADDRESS] [FILE.pcm]
// docs/protocol.md has every message.

import { randomUUID } from "node:crypto"
import { createWriteStream } from "node:fs"
import { Dealer } from "zeromq"

const [address = "tcp://127.0.0.1:5570", file] = process.argv.slice(2)
const socket = new Dealer({ linger: 0, receiveTimeout: 10_000 })
socket.connect(address)

const send = (request) => socket.send(JSON.stringify(request))

/** Follow one utterance to its end; `onSound` gets s16le mono 24 kHz pieces. */
async function follow(id, onSound = () => {}) {
  while (true) {
    const [head, pcm] = await socket.receive()
    const event = JSON.parse(head.toString())
    if (event.id !== id) continue
    if (event.type === "audio") onSound(pcm)
    else console.log(event.type, JSON.stringify(event))
    if (event.type === "rejected") throw new Error(`${event.field}: ${event.reason}`)
    if (["finished", "cancelled"].includes(event.type) || (event.type === "failed" && event.final)) return event
  }
}

try {
  // A text that is still being written, through the speaker.
  const growing = randomUUID()
  await send({ type: "speak", id: growing, final: false, conversation: "node" })
  let offset = 0
  for (const text of ["Hello ", "from Node. ", "This text grows."]) {
    await send({ type: "text", id: growing, text, offset })
    offset += [...text].length // characters are Unicode code points, not UTF-16 units
  }
  await send({ type: "end", id: growing, offset })
  await follow(growing)

  // A whole text whose sound comes here.
  const stream = randomUUID()
  const out = file ? createWriteStream(file) : undefined
  let bytes = 0
  await send({ type: "speak", id: stream, text: "And this one comes back.", output: "stream" })
  await follow(stream, (pcm) => {
    bytes += pcm.length
    out?.write(pcm)
  })
  out?.end()
  console.log(`${(bytes / 48_000).toFixed(2)} s of sound`)
} catch (error) {
  const gone = error.code === "EAGAIN"
  console.error(gone ? `no pipeline answers at ${address}: start one with launch pipeline.yaml` : error.message)
  process.exitCode = 1
} finally {
  socket.close()
}
