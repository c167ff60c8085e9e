// Jobs for transformers.js: JSON on stdin, JSON on stdout, as in optimum_client.py.
import { readFileSync } from 'node:fs';
import { dirname, basename } from 'node:path';
import { createRequire } from 'node:module';

const js = createRequire(`${process.cwd()}/`)('@huggingface/transformers');

js.env.allowRemoteModels = false;
console.warn = console.info = console.log = (...each) => console.error(...each);

const CLASSES = {
  'text-classification': 'AutoModelForSequenceClassification',
  'token-classification': 'AutoModelForTokenClassification',
  'question-answering': 'AutoModelForQuestionAnswering',
  'fill-mask': 'AutoModelForMaskedLM',
  'feature-extraction': 'AutoModel',
  'sentence-similarity': 'AutoModel',
  'image-classification': 'AutoModelForImageClassification',
  'text-generation': 'AutoModelForCausalLM',
  'text2text-generation': 'AutoModelForSeq2SeqLM',
  'automatic-speech-recognition': 'AutoModelForSpeechSeq2Seq',
};
const GENERATES = ['text-generation', 'text2text-generation', 'automatic-speech-recognition'];
const PIPELINES = ['text-classification', 'token-classification'];

function tensor(values) {
  const dims = [];
  for (let each = values; Array.isArray(each); each = each[0]) dims.push(each.length);
  const flat = values.flat(Infinity);
  return new js.Tensor('float32', Float32Array.from(flat), dims);
}

async function run(job) {
  js.env.localModelPath = dirname(job.folder);
  const name = basename(job.folder);
  const found = {};
  if (job.task === 'tables') {
    const types = Object.entries(CLASSES).map(([task, auto]) => [
      task,
      js[auto].MODEL_CLASS_MAPPINGS.flatMap((each) => [...each.keys()]),
    ]);
    return { version: js.env.version, model_types: Object.fromEntries(types) };
  }
  if (job.task === 'sentences') {
    const extract = await js.pipeline('feature-extraction', name);
    const result = await extract(job.texts, { pooling: job.pooling, normalize: job.normalize });
    return { embeddings: result.tolist() };
  }
  const model = await js[CLASSES[job.task]].from_pretrained(name);
  let feeds = Object.fromEntries(Object.entries(job.arrays ?? {}).map(([k, v]) => [k, tensor(v)]));
  let tokenizer = null;
  if (job.texts) {
    tokenizer = await js.AutoTokenizer.from_pretrained(name);
    if (job.task === 'text-generation') tokenizer.padding_side = 'left';
    feeds = tokenizer(job.texts, { padding: true });
    found.input_ids = feeds.input_ids.tolist().map((row) => row.map(Number));
  }
  if (GENERATES.includes(job.task)) {
    const settings = { do_sample: false, max_new_tokens: job.new_tokens, ...(job.settings ?? {}) };
    const inputs = feeds.input_features ? { inputs: feeds.input_features } : feeds;
    const tokens = await model.generate({ ...inputs, ...settings });
    found.tokens = tokens.tolist().map((row) => row.map(Number));
    if (tokenizer) found.texts = tokenizer.batch_decode(tokens, { skip_special_tokens: true });
    return found;
  }
  const outputs = await model(feeds);
  for (const [key, value] of Object.entries(outputs)) {
    if (value?.tolist) found[key] = value.tolist();
  }
  if (tokenizer && PIPELINES.includes(job.task)) {
    const classify = await js.pipeline(job.task, name);
    found.labels = (await classify(job.texts, { ignore_labels: [] })).map((row) =>
      Array.isArray(row) ? row.map((each) => each.entity) : row.label,
    );
  }
  return found;
}

const results = [];
for (const job of JSON.parse(readFileSync(0, 'utf8'))) {
  try {
    results.push(await run(job));
  } catch (error) {
    results.push({ error: String(error?.stack ?? error) });
  }
}
process.stdout.write(JSON.stringify(results, (_, value) => (typeof value === 'bigint' ? Number(value) : value)));
