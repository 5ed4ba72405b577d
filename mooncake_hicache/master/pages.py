"""The page at / of a master: the cluster at a glance, made anew in the browser every two seconds.

One text without anything from elsewhere; what nodes call themselves is written as text, never as
markup.
"""

__all__ = ["CLUSTER_PAGE"]

CLUSTER_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mooncake-hicache cluster</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>
 body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
 body{color:#1b1f24;background:#fff}
 h1{font-size:1.3rem} .role{font-weight:400;color:#57606a}
 .cards{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}
 .card{border:1px solid #d0d7de;border-radius:.5rem;padding:.6rem 1rem;min-width:9rem}
 .card b{display:block;font-size:1.4rem} .card span{color:#57606a}
 table{border-collapse:collapse;width:100%} td,th{padding:.4rem .6rem;text-align:right}
 td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}
 tr{border-bottom:1px solid #d0d7de} meter{width:8rem}
 .live{color:#1a7f37} .suspect,.gone{color:#cf222e} .draining,.joining,.announcing{color:#9a6700}
 #trouble{color:#cf222e}
 @media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}}
</style></head><body>
<h1>mooncake-hicache cluster <span class="role" id="role"></span></h1>
<p id="trouble" role="alert"></p><div class="cards" id="cards"></div>
<table><thead><tr><th>node</th><th>state</th><th>pages</th><th>memory</th><th>in use</th>
<th>SSD</th><th>in use</th><th>found</th><th>read</th><th>load</th><th>failure domain</th></tr>
</thead><tbody id="nodes"></tbody></table>
<script>
const units=["B","KiB","MiB","GiB","TiB","PiB"];
function size(n){let i=0;while(n>=1024&&i<5){n/=1024;i++}return n.toFixed(n<10&&i?1:0)+" "+units[i]}
function add(parent,tag,text,name){const e=document.createElement(tag);
 if(text!==undefined)e.textContent=text;if(name)e.className=name;parent.append(e);return e}
let before=null;
function rate(now,name){return before?(now.stats[name]-before.stats[name])/seconds(now):0}
function seconds(now){return (now.time_s-before.time_s)||1}
// Of all nodes, since the last look. A node that has started anew counts from 0 again.
function since(now,name){if(!before)return 0;let sum=0;
 const then=new Map(before.members.map(m=>[m.name+" "+m.incarnation,m]));
 for(const m of now.members){const old=then.get(m.name+" "+m.incarnation);
  if(old)sum+=m[name]-old[name]}
 return sum}
function share(part,whole){return whole?(100*part/whole).toFixed(1)+" %":"–"}
function used(row,of,part){add(row,"td",of?size(of):"–");const cell=add(row,"td");if(!of)return;
 const bar=add(cell,"meter");bar.max=of;bar.value=part;bar.title=size(part)}
function show(now){
 const s=now.stats,cards=document.getElementById("cards"),nodes=document.getElementById("nodes");
 document.getElementById("role").textContent=now.role+(now.epoch?", epoch "+now.epoch:"")+
  (now.role!=="leader"&&now.leader?", the leader is "+now.leader:"");
 cards.replaceChildren();nodes.replaceChildren();
 const there=now.members.filter(m=>m.state!=="gone");
 const found=since(now,"found_pages"),missed=since(now,"missed_pages"),read=since(now,"read_bytes");
 const gets=since(now,"get_count"),per=before?seconds(now):1;
 const total=there.reduce((sum,m)=>sum+m.read_bytes,0);
 for(const [name,value,id] of [["nodes",there.length,"count"],
   ["pages known",s.pages.toLocaleString(),"pages"],
   ["of the pages looked up were found",share(found,found+missed),"found"],
   ["KV read instead of computed",size(total),"total"],
   ["of it now",size(read/per)+"/s","read"],
   ["from SSD",share(since(now,"ssd_read_bytes"),read),"ssd"],
   ["from other nodes",share(since(now,"remote_read_bytes"),read),"remote"],
   ["wait of a read, mean",gets?(since(now,"get_ns")/gets/1e6).toFixed(2)+" ms":"–","wait"],
   ["pages evicted",(since(now,"evicted_pages")/per).toFixed(0)+" /s","evicted"],
   ["asked of the directory",rate(now,"locate_keys").toFixed(0)+" pages/s","located"],
   ["directory",size(s.memory_bytes),"memory"]]){
  const card=add(cards,"div",undefined,"card");card.id=id;
  add(card,"b",value);add(card,"span",name)}
 for(const m of now.members){const row=add(nodes,"tr");
  add(row,"td",m.name);add(row,"td",m.state,m.state);add(row,"td",m.pages.toLocaleString());
  used(row,m.capacity_bytes,m.capacity_bytes-m.free_bytes);
  used(row,m.ssd_size_bytes,m.ssd_used_bytes);
  add(row,"td",share(m.found_pages,m.found_pages+m.missed_pages));
  add(row,"td",size(m.read_bytes));
  add(row,"td",(100*m.load).toFixed(0)+" %");add(row,"td",m.failure_domain)}
 before=now}
async function look(){const trouble=document.getElementById("trouble");
 try{const answer=await fetch("api/cluster");if(!answer.ok)throw new Error(await answer.text());
  show(await answer.json());trouble.textContent=""}
 catch(error){trouble.textContent="The master does not answer: "+error.message}
 setTimeout(look,2000)}
look();
</script></body></html>
"""
